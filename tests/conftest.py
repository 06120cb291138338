"""What tests of several folders share: does this machine have what a test needs?

With APICOST_KERNEL_TESTS=require (continuous integration on a machine that can load eBPF) a test that would be
skipped for want of the kernel or the gateway fails instead.
"""

import os

import hypothesis
import pytest

# No law is about time: a busy machine must not fail one.
hypothesis.settings.register_profile("apicost", deadline=None, print_blob=True)
hypothesis.settings.load_profile("apicost")


def skip_or_fail(missing: str) -> None:
    """Skip with the missing thing named; fail where the kernel tests are required."""
    if os.environ.get("APICOST_KERNEL_TESTS") == "require":
        pytest.fail(f"required here, but missing: {missing}", pytrace=False)
    pytest.skip(f"missing: {missing}")


@pytest.fixture(scope="session")
def kernel_or_skip() -> None:
    """eBPF can be loaded and a cgroup made."""
    from apicost.demo import live

    missing = live.why_no_probe()
    if missing:
        skip_or_fail(missing)
