"""Files of rows: compressed ones, dialects of CSV, JSON with a wrapper, Parquet and Arrow, and what is no data."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from lora_lab.common.errors import InputError
from lora_lab.data.opening import check_shards, kind_of, stem_of
from lora_lab.data.readers import READERS, read_rows

LINES = b'{"text": "one"}\n{"text": "tw\xc3\xb6"}\n'


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def texts(path):
    return [row.fields["text"] for row in read_rows(path)]


def refusal(path):
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    return message


class TestCompressed:
    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_lines_keep_their_numbers(self, tmp_path, suffix):
        path = written(tmp_path / f"rows.jsonl{suffix}", COMPRESS[suffix](LINES + b"{oops\n"))
        rows = list(read_rows(path))
        assert [row.fields.get("text") for row in rows] == ["one", "twö", None]
        assert rows[2].place == f"{path}:3"
        assert rows[2].damage.startswith("bad JSON")

    @pytest.mark.parametrize("suffix", COMPRESS)
    @pytest.mark.parametrize(
        ("kind", "data"),
        [
            (".json", b'[{"text": "one"}, {"text": "tw\xc3\xb6"}]'),
            (".csv", b'text,n\none,1\n"tw\xc3\xb6",2\n'),
            (".tsv", b"text\tn\none\t1\ntw\xc3\xb6\t2\n"),
        ],
    )
    def test_other_kinds(self, tmp_path, suffix, kind, data):
        assert texts(written(tmp_path / f"rows{kind}{suffix}", COMPRESS[suffix](data))) == ["one", "twö"]

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_a_file_cut_off(self, tmp_path, suffix):
        whole = COMPRESS[suffix](b'{"text": "one"}\n' * 5000)
        assert "the compressed file is damaged" in refusal(
            written(tmp_path / f"rows.jsonl{suffix}", whole[: len(whole) // 2])
        )

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_a_file_that_is_not_compressed_at_all(self, tmp_path, suffix):
        path = written(tmp_path / f"rows.jsonl{suffix}", LINES)
        assert refusal(path).startswith(f"{path}: the compressed file is damaged")

    def test_a_columnar_file_is_compressed_inside(self, tmp_path):
        path = written(tmp_path / "rows.parquet.gz", gzip.compress(b"PAR1"))
        assert "a .parquet file is compressed inside" in refusal(path)

    @pytest.mark.parametrize(
        ("name", "kind", "stem"),
        [
            ("train.jsonl", ".jsonl", "train"),
            ("train.JSONL.GZ", ".jsonl", "train"),
            ("a.b.csv.zst", ".csv", "a.b"),
            ("rows.gz", ".gz", "rows"),
            ("README", "", "README"),
        ],
    )
    def test_kind_and_stem(self, tmp_path, name, kind, stem):
        assert (kind_of(tmp_path / name), stem_of(tmp_path / name)) == (kind, stem)


class TestDialects:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_the_header_says_what_parts_the_columns(self, tmp_path, delimiter):
        lines = [("prompt", "completion"), ("a", '"b,;|\tc"'), ("d", "e")]
        path = written(tmp_path / "rows.csv", "".join(f"{delimiter.join(line)}\r\n" for line in lines).encode())
        assert [dict(row.fields) for row in read_rows(path)] == [
            {"prompt": "a", "completion": "b,;|\tc"},
            {"prompt": "d", "completion": "e"},
        ]

    def test_a_comma_comes_first(self, tmp_path):
        path = written(tmp_path / "rows.csv", b"text,a;b;c\none,1\n")
        assert [dict(row.fields) for row in read_rows(path)] == [{"text": "one", "a;b;c": "1"}]

    def test_one_column_with_any_text(self, tmp_path):
        assert texts(written(tmp_path / "rows.csv", b'text\none; two | three\n"four, five"\n')) == [
            "one; two | three",
            "four, five",
        ]

    def test_tsv_has_tabs_whatever_else_is_in_it(self, tmp_path):
        path = written(tmp_path / "rows.tsv", b"text\ta,b,c\none, two\t1\n")
        assert [dict(row.fields) for row in read_rows(path)] == [{"text": "one, two", "a,b,c": "1"}]

    @pytest.mark.parametrize("kind", [".csv", ".tsv"])
    def test_an_empty_file(self, tmp_path, kind):
        assert list(read_rows(written(tmp_path / f"rows{kind}", b""))) == []

    def test_a_byte_order_mark_and_quoted_names_over_lines(self, tmp_path):
        path = written(tmp_path / "rows.csv", b'\xef\xbb\xbf"text";"a\nb"\none;1\n')
        rows = list(read_rows(path))
        assert dict(rows[0].fields) == {"text": "one", "a\nb": "1"}
        assert rows[0].place == f"{path}:3"


class TestJson:
    @pytest.mark.parametrize("indent", [None, 2])
    @pytest.mark.parametrize("key", ["data", "rows", "train"])
    def test_rows_under_a_key(self, tmp_path, key, indent):
        whole = {"version": 1, key: [{"text": "one"}, {"text": "two"}]}
        path = written(tmp_path / "rows.json", json.dumps(whole, indent=indent).encode())
        assert texts(path) == ["one", "two"]
        assert [row.place for row in read_rows(path)] == [f"{path}.{key}[0]", f"{path}.{key}[1]"]

    def test_lines_are_lines_even_if_they_have_lists(self, tmp_path):
        path = written(tmp_path / "rows.json", b'{"messages": [{"role": "user"}]}\n{"messages": []}\n')
        assert len(list(read_rows(path))) == 2

    def test_ndjson(self, tmp_path):
        assert texts(written(tmp_path / "rows.ndjson", LINES)) == ["one", "twö"]


class TestColumnar:
    TURNS = (
        [{"role": "user", "content": "a", "tool_calls": None}],
        [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1, "y": None}}]}],
    )

    def table(self):
        return pa.Table.from_pylist(
            [{"text": "one", "messages": self.TURNS[0]}, {"text": None, "messages": self.TURNS[1]}]
        )

    @pytest.mark.parametrize("kind", [".parquet", ".arrow", ".feather", "stream.arrow"])
    def test_nulls_of_structs_are_keys_that_other_rows_have(self, tmp_path, kind):
        path = tmp_path / f"rows{kind}"
        if kind == ".parquet":
            parquet.write_table(self.table(), path)
        elif kind == "stream.arrow":
            with pa.ipc.new_stream(path, self.table().schema) as stream:
                stream.write_table(self.table())
        else:
            feather.write_feather(self.table(), path)
        first, second = read_rows(path)
        assert first.fields == {"text": "one", "messages": [{"role": "user", "content": "a"}]}
        assert second.fields == {
            "text": None,
            "messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}],
        }
        assert second.place == f"{path}[1]"

    def test_json_columns_of_datasets_are_decoded(self, tmp_path):
        data = datasets.Dataset.from_dict(
            {"tools": [[{"a": 1}, {"b": [2]}]]}, features=datasets.Features({"tools": datasets.List(datasets.Json())})
        )
        data.to_parquet(tmp_path / "rows.parquet")
        data.save_to_disk(tmp_path / "saved")
        for path in (tmp_path / "rows.parquet", tmp_path / "saved" / "data-00000-of-00001.arrow"):
            assert next(read_rows(path)).fields == {"tools": [{"a": 1}, {"b": [2]}]}

    @pytest.mark.parametrize("kind", [".parquet", ".arrow", ".feather"])
    def test_a_damaged_file(self, tmp_path, kind):
        assert "; write it again" in refusal(written(tmp_path / f"rows{kind}", b"no such thing at all" * 9))


class TestNoData:
    @pytest.mark.parametrize("kind", READERS)
    def test_a_pointer_of_git_lfs(self, tmp_path, kind):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
        path = written(tmp_path / f"rows{kind}", pointer)
        assert refusal(path) == (f"{path}: is a pointer of Git LFS, not the data; run `git lfs pull` in its repository")

    @pytest.mark.parametrize(
        ("names", "missing"),
        [
            (
                ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
                "1 of 3 shards are missing (the first is 1)",
            ),
            (
                ["a-00001-of-00002.jsonl.gz", "b-00000-of-00001.jsonl.gz"],
                "1 of 2 shards are missing (the first is 0)",
            ),
        ],
    )
    def test_missing_shards(self, tmp_path, names, missing):
        with pytest.raises(InputError) as caught:
            check_shards([tmp_path / name for name in names])
        assert missing in str(caught.value)

    def test_all_shards(self, tmp_path):
        check_shards([tmp_path / f"train-{number:05d}-of-00003.parquet" for number in range(3)])
        check_shards([tmp_path / "rows.jsonl"])
