"""The two ways to give the plugin a setting for one run of criu."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..conftest import NEWER_CRIU
from .harness.criu import has_plugin_option
from .harness.scenario import Scenario

NAME = "criu-detached.conf"

Way = Callable[..., list[str]]  # of the scenario, and a setting; returns options for criu


def settings(held: Scenario, *lines: str) -> None:
    """Write the settings beside the images; no line takes the file away."""
    held.images.mkdir(exist_ok=True)
    path = held.images / NAME
    path.write_text("".join(f"{line}\n" for line in lines))
    if not lines:
        path.unlink()


def beside_images(held: Scenario, name: str, *values: str) -> list[str]:
    """A setting in the image directory."""
    settings(held, " ".join([name, *values]))
    return []


def on_command_line(held: Scenario, name: str, *values: str) -> list[str]:
    """A setting among the options of criu."""
    settings(held)
    return ["--plugin-option", f"criu_detached.{name}={':'.join(values)}"]


WAYS = pytest.mark.parametrize(
    "way",
    [
        beside_images,
        pytest.param(
            on_command_line,
            marks=pytest.mark.skipif(
                not has_plugin_option(),
                reason=f"{NEWER_CRIU}4.3 or newer: --plugin-option came with it",
            ),
        ),
    ],
)
