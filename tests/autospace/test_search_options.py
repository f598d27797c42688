from __future__ import annotations

import pytest

from autospace.search_options import SearchOptions
from devices.errors import UsageError


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"update_rule": "full"}, "update_rule 'full': must be two or full_v2"),
        ({"constraint": "hard"}, "constraint 'hard': must be lagrangian"),
    ],
)
def test_unknown_forms_are_named(change, why):
    with pytest.raises(UsageError, match=why):
        SearchOptions(**change).check()
