"""Each branch of the tree means one exit code."""

from devices import errors


def test_exit_codes() -> None:
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes == {
        "AutospaceError": 1,
        "BudgetError": 3,
        "InvalidInputError": 1,
        "MismatchError": 1,
        "UnavailableError": 4,
        "UsageError": 2,
    }
    assert issubclass(errors.MismatchError, errors.InvalidInputError)
