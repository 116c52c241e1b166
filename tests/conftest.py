"""Where nothing may be skipped silently: with CRIU_DETACHED_NO_SKIP a skip is a failure.

The test ground brings every tool and privilege, so a test that does not find one there has hidden
something. Four reasons are good ones. The kernel is the machine's own or an older one than the
default, and lacks what a test needs: the reason says so with THIS_KERNEL. CRIU is another one than
the default, and cannot do the same with attached files: THIS_CRIU. The test is of something that
came with a later CRIU than the default: NEWER_CRIU. A test is marked "native_only".
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

THIS_KERNEL = "this kernel "
THIS_CRIU = "this CRIU "
NEWER_CRIU = "needs CRIU "
NATIVE_ONLY = "native only: "
# What may lack something, if it is not the default of the test ground.
LACKING = {"kernel": THIS_KERNEL, "criu": THIS_CRIU}


def in_vm() -> bool:
    """Whether the tests run in the VM, whose kernel is chosen for them."""
    return os.environ.get("CRIU_DETACHED_GROUND") == "vm"


def may_skip(reason: str) -> bool:
    """Whether a test that was skipped for this reason hides nothing."""
    if not os.environ.get("CRIU_DETACHED_NO_SKIP"):
        return True
    defaults = os.environ.get("CRIU_DETACHED_DEFAULTS", "").split()  # from setup_kernel.sh
    good = [NEWER_CRIU, *(start for name, start in LACKING.items() if name not in defaults)]
    return reason.startswith((*good, NATIVE_ONLY) if in_vm() else tuple(good))


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "native_only(reason): would show nothing more in the VM")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Skip in the VM what is marked so."""
    marker = item.get_closest_marker("native_only")
    if marker and in_vm():
        item.add_marker(pytest.mark.skip(reason=NATIVE_ONLY + marker.args[0]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail that was skipped for no good reason; an expected failure is no skip."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        path, line, message = report.longrepr
        if not may_skip(message.removeprefix("Skipped: ")):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: may not be skipped here: {message}"
    return report
