"""Bad input: exactly this error, which says what was expected and found, and nothing changes."""

import pytest
from torch import nn

import negdiag_param
from tests.bad_input import calls, checkpoints, maps, options, tensors
from tests.support.state import state_of

THEMES = [calls, checkpoints, maps, options, tensors]
ROWS = {label: row for theme in THEMES for label, row in theme.ROWS.items()}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_it_is_refused_and_nothing_changes(row):
    subject = row.make()
    before = state_of(subject) if isinstance(subject, nn.Module) else None
    with pytest.raises(row.error) as refusal:
        row.call(subject)
    assert type(refusal.value) is row.error
    assert row.fits(str(refusal.value)), refusal.value
    if before is not None:
        assert state_of(subject) == before


def test_the_table_is_long_and_no_label_is_used_twice():
    assert len(ROWS) == sum(len(theme.ROWS) for theme in THEMES)
    assert len(ROWS) >= 200


@pytest.mark.parametrize("name", negdiag_param.__all__)
def test_every_public_name_is_in_the_table(name):
    assert any(label.partition(":")[0].partition(".")[0] == name for label in ROWS)
