"""Find Java, which Spark requires, and check its version."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from data.base.errors import EngineError

MIN_VERSION = 17
"""The oldest version of Java that Spark 4 supports."""
_INSTALL = "install Java 17 or newer (apt-get install default-jre-headless), or set JAVA_HOME to its folder"


def check_java() -> None:
    """Raises EngineError if Java is missing or too old. Like Spark, this function looks for Java in JAVA_HOME if it is
    set, and otherwise in PATH."""
    java = _find()
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{java} cannot be run ({error}), but Spark requires Java: {_INSTALL}") from None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if found is None:
        raise EngineError(f"{java} -version does not print a version, but Spark requires Java: {_INSTALL}")
    if int(found[1]) < MIN_VERSION:
        raise EngineError(f"{java} is Java {found[1]}, but Spark requires Java {MIN_VERSION} or newer: {_INSTALL}")


def _find() -> str:
    home = os.environ.get("JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        if not java.is_file():
            raise EngineError(f"JAVA_HOME is {home!r}, but {java} does not exist: {_INSTALL}")
        return str(java)
    java = shutil.which("java")
    if java is None:
        raise EngineError(f"Spark requires Java, but there is no java in PATH, and JAVA_HOME is not set: {_INSTALL}")
    return java
