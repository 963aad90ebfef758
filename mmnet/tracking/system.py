"""What the machine does while it trains, under MLflow's own names: its page *System metrics*."""

import shutil
import subprocess

import psutil

GPU = {
    "utilization.gpu": "utilization_percentage",
    "memory.used": "memory_usage_megabytes",
    "power.draw": "power_usage_watts",
    "temperature.gpu": "temperature_celsius",
}


class Machine:
    """Samples of the whole machine, and of one process and its children."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.has_gpu = shutil.which("nvidia-smi") is not None
        self.sample()  # rates are since the last one

    def sample(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": psutil.disk_usage(".").percent,
        }
        try:
            values["process_cpu_percentage"] = self.process.cpu_percent()
            values["process_memory_megabytes"] = self.process.memory_info().rss / 1e6
        except psutil.Error:
            pass  # it has just ended
        return values | (self._gpus() if self.has_gpu else {})

    def _gpus(self) -> dict[str, float]:
        command = [
            "nvidia-smi",
            f"--query-gpu=index,{','.join(GPU)}",
            "--format=csv,noheader,nounits",
        ]
        values: dict[str, float] = {}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return values
        for line in done.stdout.splitlines():
            index, *cells = line.split(", ")
            for name, cell in zip(GPU.values(), cells, strict=False):
                try:
                    values[f"gpu_{index}_{name}"] = float(cell)
                except ValueError:
                    continue  # "[N/A]": some cards do not tell
        return values
