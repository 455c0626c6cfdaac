"""Looks into an sdist and a wheel: all that belongs there, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path


def check(what: str, found: set[str], expected: set[str]) -> None:
    """Refuses contents that are not as expected, naming the difference."""
    if found != expected:
        sys.exit(f"{what}: missing {expected - found}, too much {found - expected}")


sdist, wheel = sorted(sys.argv[1:], key=lambda name: name.endswith(".whl"))
tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
files = {name for name in tracked.stdout.splitlines() if not name.startswith(".")}
version = Path(sdist).name.removeprefix("negdiag_param-").removesuffix(".tar.gz")
with tarfile.open(sdist) as archive:
    names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
check("sdist", names, files | {".gitignore", "PKG-INFO"})
with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    about = f"negdiag_param-{version}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
    license_ = archive.read(f"{about}/licenses/LICENSE")
package = {name for name in files if name.startswith("negdiag_param/")}
if "negdiag_param/py.typed" not in package:
    sys.exit("wheel: no py.typed")
own = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
check("wheel", names, package | own)
if f'\n__version__ = "{version}"\n' not in Path("negdiag_param/__init__.py").read_text("utf-8"):
    sys.exit(f"sdist: another version, {version}")
if metadata["Version"] != version:
    sys.exit(f"wheel: another version, {metadata['Version']}")
if metadata.get_payload().strip() != Path("README.md").read_text("utf-8").strip():
    sys.exit("wheel: its description is not README")
if license_ != Path("LICENSE").read_bytes():
    sys.exit("wheel: another LICENSE")
print(f"sdist of {len(files) + 2} files, wheel of {len(package)} modules, version {version}")
