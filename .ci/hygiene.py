"""Check what no other tool does: locks in step with pyproject, no paths of one machine."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "requirements/runtime.lock": (),
    "requirements/dev.lock": ("mysql", "server", "dev"),
    "requirements/bench.lock": ("mysql", "server", "bench"),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Written so that this line is not a find of its own.
PRIVATE_PATH = re.compile(r"(?<![\w.<-])/(?:" + "home|Users|root|work" + r")/[\w.]")


def normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(groups: tuple[str, ...]) -> set[str]:
    """Return the names that pyproject asks for, with these extras and groups."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = {**config["project"]["optional-dependencies"], **config["dependency-groups"]}
    lines = [*config["project"]["dependencies"], *(line for name in groups for line in lists[name])]
    return {normal(NAME.match(line)[0]) for line in lines}  # type: ignore[index]


def lock_findings() -> Iterator[str]:
    """Yield what is wrong with the lock files."""
    for path, groups in LOCKS.items():
        text = (ROOT / path).read_text()
        entries = re.split(r"\n(?=\S)", text.strip())
        locked = {normal(NAME.match(entry)[0]): entry for entry in entries}  # type: ignore[index]
        for name in sorted(wanted(groups) - locked.keys()):
            yield f"{path}: {name} of pyproject.toml is not locked; run `make lock`"
        for name, entry in locked.items():
            if "==" not in entry or "--hash=sha256:" not in entry:
                yield f"{path}: {name} is not pinned with a hash"
        if re.search(r"https?://", text):
            yield f"{path}: names a package index"


def tracked() -> list[Path]:
    """Return the text files under version control; outside of git none."""
    command = ["git", "-C", str(ROOT), "grep", "-Ilz", ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [ROOT / name for name in done.stdout.split("\0") if name]


def path_findings() -> Iterator[str]:
    """Yield the lines that name a folder of somebody's machine."""
    for path in tracked():
        if not path.exists():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if PRIVATE_PATH.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: a path of one machine"


def main() -> int:
    """Print every finding; 1 where there is one."""
    findings = [*lock_findings(), *path_findings()]
    for finding in findings:
        print(finding)
    print(f"hygiene: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
