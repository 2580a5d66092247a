"""What ``--meta KEY=VALUE`` of ``flujo runs list`` means."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from flujo_core.cli.metadata_option import metadata_filter


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ([], None),
        (["a=b"], {"a": "b"}),
        (["a=1"], {"a": 1}),
        (["a=1.50"], {"a": 1.5}),
        (["a=true"], {"a": True}),
        (["a=null"], {"a": None}),
        (['a="1"'], {"a": "1"}),
        (["a="], {"a": ""}),
        (["a= b = c "], {"a": " b = c "}),
        (["a=NaN"], {"a": "NaN"}),
        (["a=True"], {"a": "True"}),
        (["a=2025-03-04"], {"a": "2025-03-04"}),
        (["a=line\nline"], {"a": "line\nline"}),
        (["user.id=123"], {"user": {"id": 123}}),
        (["a.b.c=x"], {"a": {"b": {"c": "x"}}}),
        ([r"a\.b=x"], {"a.b": "x"}),
        ([r"a\=b.c\\=x=y"], {"a=b": {"c\\": "x=y"}}),
        (["ü ü.$x=1"], {"ü ü": {"$x": 1}}),
        (['user={"id": 1, "a.b": {}}'], {"user": {"id": 1, "a.b": {}}}),
        (["user.id=1", "user.name=x"], {"user": {"id": 1, "name": "x"}}),
        (['user={"id": 1}', "user.name=x", "b=1"], {"user": {"id": 1, "name": "x"}, "b": 1}),
        (["a=1", "a=1.0"], {"a": 1}),
        (['tags=["a"]', 'tags=["b", "a"]'], {"tags": ["a", "b", "a"]}),
        (['user={"tags": []}', 'user.tags=["b"]'], {"user": {"tags": ["b"]}}),
    ],
)
def test_metadata_options(options: list[str], meant: dict[str, Any] | None) -> None:
    found = metadata_filter(options)
    assert found == meant
    assert repr(found) == repr(meant)  # 1, 1.0 and True are equal


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([""], "is not KEY=VALUE"),
        (["a"], "is not KEY=VALUE"),
        ([r"a\=1"], "is not KEY=VALUE"),
        ([r"a\b=1"], "a backslash in KEY is written twice"),
        (["=1"], "empty name"),
        ([".a=1"], "empty name"),
        (["a.=1"], "empty name"),
        (["a..b=1"], "empty name"),
        (['a={"b": 1, "b": 2}'], "gives a key of an object twice"),
        (["a=" + "[" * 100_000], "nested too deeply"),
        (["a=1", "a=2"], "'a' can't be both 1 and 2"),
        (["a=1", "a=true"], "'a' can't be both 1 and true"),
        (["a=0", "a=false"], "'a' can't be both 0 and false"),
        (["a=x", 'a="y"'], '\'a\' can\'t be both "x" and "y"'),
        (["a=1", "a.b=1"], "'a' can't be both 1 and {\"b\": 1}"),
        (["a=[]", "a={}"], "'a' can't be both [] and {}"),
        ([r"u.x\.y=1", r'u={"x.y": 2}'], r"'u.x\\.y' can't be both 1 and 2"),
    ],
)
def test_metadata_options_that_mean_nothing(options: list[str], complaint: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        metadata_filter(options)
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 300
