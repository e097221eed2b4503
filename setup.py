"""Copy the locustfiles and the sample into the package when it is built, which pyproject.toml cannot express."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CHECKOUT = Path(__file__).resolve().parent
SHIPPED = ("locust.conf", "locustfiles/*.py", "asr_data/sample/*.flac", "asr_data/sample/manifest.jsonl")


class BuildWithShipped(build_py):
    """Copies the shipped files to where asr_load/shipped.py looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in SHIPPED:
            files = list(CHECKOUT.glob(pattern))
            if not files:  # the sdist lacks them: see MANIFEST.in
                raise FileNotFoundError(f"{CHECKOUT / pattern}: no such file, and the package would lack it")
            for file in files:
                target = Path(self.build_lib) / "asr_load" / "shipped" / file.relative_to(CHECKOUT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithShipped})
