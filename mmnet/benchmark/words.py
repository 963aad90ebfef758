"""The words of the mini benchmark."""

WORDS = {"large": ("large", "big"), "small": ("small", "little")}
"""Size -> the words for it."""
WITH = {"striped": "with stripes"}
"""Pattern -> words after the noun."""
SIDE = {
    "left": ("on the left", "on left", "on the left side"),
    "right": ("on the right", "on right", "on the right side"),
    "top": ("at the top", "at top"),
    "bottom": ("at the bottom", "at bottom"),
}
MIDDLE = ("in the middle", "in middle", "in the center")
RELATION = {
    "left": ("to the left of", "on the left of"),
    "right": ("to the right of", "on the right of"),
    "top": ("above",),
    "bottom": ("below",),
}

# testA refers to the first group, testB to the second.
GROUPS = {"testA": ("circle", "square", "triangle"), "testB": ("star", "cross", "ring")}
SHAPES = GROUPS["testA"] + GROUPS["testB"]

COLOURS = {
    "red": (215, 45, 40),
    "green": (50, 165, 60),
    "blue": (45, 85, 225),
    "yellow": (240, 210, 45),
    "purple": (150, 55, 190),
    "white": (240, 240, 240),
}
"""Word -> red, green, blue."""
KIND_OF = {
    **dict.fromkeys((word for words in WORDS.values() for word in words), "size"),
    **dict.fromkeys(("plain", *WITH, *(phrase.split()[-1] for phrase in WITH.values())), "pattern"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(SHAPES, "shape"),
}
"""Word -> the attribute that it names."""
