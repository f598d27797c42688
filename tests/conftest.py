"""What every test shares: one thread, honest skips, and the released files."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

_REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs_hardware: may be skipped even under REQUIRE_ALL=1, with the reason"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """With REQUIRE_ALL=1 a skipped test is a failed one, unless it needs hardware."""
    report = yield
    expected = (
        hasattr(report, "wasxfail")
        or item.get_closest_marker("needs_hardware")
        # The released files are no part of this repository: a checkout alone has none.
        or ("released file" in str(report.longrepr) and not _REFERENCE.exists())
    )
    if os.environ.get("REQUIRE_ALL") == "1" and report.skipped and not expected:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: REQUIRE_ALL=1 and the test was skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The files of the AutoSpace release, which are not part of this repository."""
    if not (_REFERENCE / "net_340M.config").is_file():
        pytest.skip("the released files are not there: shared/reference beside the checkout")
    return _REFERENCE
