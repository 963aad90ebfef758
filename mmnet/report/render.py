"""The templates of what is written: `templates/*.j2`.

TeX is full of braces, so that all templates mark values with << >> and statements with <% %>.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

ENVIRONMENT = Environment(
    loader=PackageLoader("mmnet.report"),
    undefined=StrictUndefined,
    variable_start_string="<<",
    variable_end_string=">>",
    block_start_string="<%",
    block_end_string="%>",
    comment_start_string="<#",
    comment_end_string="#>",
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """Return `templates/TEMPLATE.j2` filled in; an unknown name in it is an error."""
    return ENVIRONMENT.get_template(f"{template}.j2").render(values)
