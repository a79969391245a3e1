"""What all tests rely on, whatever started them."""

from __future__ import annotations

import gc
import signal

import hypothesis
import pytest

# What is imported until all tests are known stays until the end: nobody looks for garbage in it.
gc.disable()

# Machines that run tests are busy.
hypothesis.settings.register_profile("busy", deadline=None)
hypothesis.settings.load_profile("busy")

# A shell's background job ignores SIGINT, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup SIGHUP; the tests themselves go on.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Not called in the process that only hands out tests, which needs no torch."""
    import torch

    torch.set_num_threads(1)  # the networks are small, and machines that run tests are busy
    gc.freeze()
    gc.enable()
