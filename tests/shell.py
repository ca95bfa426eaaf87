"""A shell in a copy of the repository, with the environment active: for tests of commands as a person types them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from em_assets.records import DatasetFolder
from em_assets.store import LocalStore


class Shell:
    """One copy, one environment."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("dagster", path=str(Path(sys.executable).parent)) is None:
            pytest.skip("the dagster command is not beside this Python; run the tests with `make test`")
        self.folder = folder
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for name in tracked:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "NO_COLOR": "1"}

    def run(self, *command: str, timeout: float = 180) -> subprocess.CompletedProcess:
        # no controlling terminal: progress would otherwise go to the terminal of whoever runs the tests
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,
            check=False,
        )

    def switch_to_sample(self) -> None:
        for line in self.run("em-assets", "sample", "env").stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environment[name] = value.strip("'\"")

    @property
    def dataset(self) -> DatasetFolder:
        return DatasetFolder(LocalStore(self.environment["EM_ASSETS_ROOT"]), "hemibrain_crop")
