"""Files appear complete or not at all, and every broken one is explained in a line."""

from pathlib import Path

import pytest

from autospace.files import (
    canonical_json,
    check_writable,
    content_hash,
    read_document,
    replacing,
    write_json,
    write_text,
)
from devices.errors import InvalidInputError, UsageError


def test_a_document_is_read_back(tmp_path: Path) -> None:
    document = {"b": [1, 2.5, None], "a": {"ü": "→"}}
    write_json(tmp_path / "file.json", document)
    assert read_document(tmp_path / "file.json", "a file") == document
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_the_hash_depends_on_the_value_alone() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert canonical_json({"b": 1, "a": [1, 2]}) == '{"a":[1,2],"b":1}'
    assert content_hash([]) == "4f53cda18c2baa0c"


def test_what_fails_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="cut"), replacing(path) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError("cut")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_lacks_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/file", "the folder .* does not exist; create it first"),
        (".", "is a folder; name a file to write"),
        ("plain/file", "does not exist"),
        ("/proc/autospace.json", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(UsageError, match=why):
        check_writable(tmp_path / name)
    with pytest.raises(UsageError, match=why):
        write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_checking_an_output_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b'{"a": [1, 2', r"not valid JSON at line 1 \(truncated"),
        (b'{"a": 1}\n}', "not valid JSON at line 2"),
        (b"hello", "not valid JSON"),
        (b"\xff\xfe\x00\x01\x80", "not text"),
        (b"[1, 2]", "a JSON list"),
        (b'"text"', "a JSON str"),
        (b"null", "a JSON NoneType"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_documents(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=why) as caught:
        read_document(path, "a space file")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file; expected a space file"):
        read_document(tmp_path / "missing", "a space file")
    with pytest.raises(InvalidInputError, match="is a folder, not a space file"):
        read_document(tmp_path, "a space file")
