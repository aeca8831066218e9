"""Go templates: what they print, as Go's text/template does, and what is told of those that are none."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.gotemplate import ExecutionError, Fields, Method, Shape, TemplateError, compile_template

DATA: Mapping[str, Callable[[], Any]] = {
    "Name": lambda: "ip-10.org.",
    "Empty": lambda: "",
    "Number": lambda: 7,
    "Yes": lambda: True,
    "Nothing": lambda: None,
    "Match": lambda: ["all", "7b", ""],
    "Group": lambda: {"a": "10", "1": "7b"},
    "Question": lambda: Fields({"Name": lambda: "Q."}),
    "Meta": lambda: Method(lambda label: f"<{label}>"),
}
SHAPE: Shape = dict.fromkeys(DATA, None) | {"Name": {}, "Question": {"Name": {}}}


def filled(text: str) -> str:
    return compile_template(text, SHAPE).execute(Fields(DATA))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain } text {", "plain } text {"),
        ("{{ .Name }}|{{.Name}}|{{\n.Name\n}}", "ip-10.org.|ip-10.org.|ip-10.org."),
        (
            "{{ .Number }} {{ .Yes }} {{ .Nothing }} {{ .Match }} {{ .Group }}",
            "7 true <no value> [all 7b ] map[1:7b a:10]",
        ),
        ("{{ .Group.a }}{{ .Group.zz }}", "10<no value>"),
        ("{{ .Question.Name }}{{ $.Question.Name }}", "Q.Q."),
        ("a {{- .Number -}} b", "a7b"),
        ("a {{- .Number }} b {{ .Number -}} \n c", "a7 b 7c"),
        ("a{{/* nothing */}}b {{- /* nothing */ -}} c", "abc"),
        ('{{ "a\\tb\\"" }}{{ `raw\\t` }}{{ \'a\' }}{{ 0x10 }}{{ 1.5 }}{{ -3 }}{{ true }}', 'a\tb"raw\\t97161.5-3true'),
        # Pipelines
        ('{{ index .Match 1 }}{{ index .Group "1" }}{{ index .Group "zz" }}|', "7b7b|"),
        ('{{ .Name | len }}{{ .Name | printf "%s-%s" "a" }}', "10a-ip-10.org."),
        ("{{ parseInt (index .Match 1) 16 8 }}", "123"),
        (
            '{{ parseInt "0b1" 16 64 }} {{ parseInt "0x1f" 0 8 }} {{ parseInt "0755" 0 64 }} {{ parseInt "zz" 36 0 }}',
            "177 31 493 1295",
        ),
        ("{{ (index .Match 0) | len }}", "3"),
        ('{{ .Meta "x/y" }}{{ "z" | .Meta }}', "<x/y><z>"),
        ("{{ slice .Name 3 5 }}{{ slice .Name 8 }}{{ slice .Match 1 2 }}", "10g.[7b]"),
        ('{{ print 1 2 "a" "b" 3 }}{{ println "x" 1 }}', "1 2a b3x 1\n".replace("a b", "ab")),
        # Printing
        (
            '{{ printf "%d|%5d|%-5d|%05d|%+d|%x|%X|%#x|%o|%b|%c" 7 7 7 7 7 255 255 255 8 5 65 }}',
            "7|    7|7    |00007|+7|ff|FF|0xff|10|101|A",
        ),
        (
            '{{ printf "%s|%8s|%-8s|%.2s|%q|%v|%x|%t|%%" "abc" "abc" "abc" "abc" "a\\"b" 7 "ab" true }}',
            'abc|     abc|abc     |ab|"a\\"b"|7|6162|true|%',
        ),
        ('{{ printf "%.2f %v" 1.5 .Match }}', "1.50 [all 7b ]"),
        # Comparing
        (
            '{{ eq .Number 7 }}{{ eq .Number 1 2 7 }}{{ ne 1 2 }}{{ lt 1 2 }}{{ le 2 2 }}{{ gt "b" "a" }}{{ ge 1 2 }}',
            "truetruetruetruetruetruefalse",
        ),
        ("{{ and .Name .Empty }}|{{ and 1 2 }}|{{ or .Empty 0 .Name }}|{{ not .Empty }}", "|2|ip-10.org.|true"),
        ("{{ or .Name (index .Match 9) }}", "ip-10.org."),
        # Control
        ("{{ if .Empty }}a{{ else }}b{{ end }}{{ if .Name }}c{{ end }}", "bc"),
        ("{{ if .Empty }}a{{ else if .Number }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .Empty }}a{{ else if .Empty }}b{{ else }}c{{ end }}", "c"),
        (
            "{{ with .Question }}{{ .Name }}{{ $.Name }}{{ end }}{{ with .Empty }}a{{ else }}{{ .Number }}{{ end }}",
            "Q.ip-10.org.7",
        ),
        ("{{ with $x := .Number }}{{ $x }}{{ . }}{{ end }}", "77"),
        ("{{ with .Empty }}a{{ else with .Name }}{{ . }}{{ end }}", "ip-10.org."),
        ("{{ range .Match }}[{{ . }}]{{ end }}", "[all][7b][]"),
        ("{{ range $i, $m := .Match }}{{ $i }}{{ $m }};{{ end }}", "0all;17b;2;"),
        ("{{ range $m := .Match }}{{ $m }};{{ end }}", "all;7b;;"),
        ("{{ range $k, $v := .Group }}{{ $k }}={{ $v }} {{ end }}", "1=7b a=10 "),
        ("{{ range .Nothing }}a{{ else }}none{{ end }}", "none"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ('{{ range .Match }}{{ if eq . "all" }}{{ continue }}{{ end }}{{ . }}{{ break }}{{ end }}', "7b"),
        ("{{ $x := 1 }}{{ range .Match }}{{ $x = . }}{{ end }}{{ $x }}|", "|"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
    ],
)
def test_what_a_template_prints(text: str, printed: str) -> None:
    assert filled(text) == printed


@pytest.mark.parametrize(
    ("text", "wrong", "sentence"),
    [
        ("x {{ .Nam }}", ".Nam", "there is no field `.Nam` here; did you mean `.Name`?"),
        ("{{ .Question.Nam }}", ".Nam", "there is no field `.Nam` here; did you mean `.Name`?"),
        ("{{ .Name.X }}", ".X", "there is no field `.X` here"),
        ("{{ range .Match }}{{ $.Zzz }}{{ end }}", ".Zzz", "there is no field `.Zzz` here"),
        ("{{ lenn .Name }}", "lenn", "there is no function `lenn`; did you mean `len`?"),
        ("{{ html .Name }}", "html", "`html` isn't supported"),
        ('{{ define "x" }}{{ end }}', "define", "`define` isn't supported"),
        ('{{ template "x" }}', "template", "`template` isn't supported"),
        ("{{ .Name", "{{", "this action isn't closed with `}}`"),
        ('{{ "a }}', '"', "`\"` isn't expected in an action"),
        ("{{ .Name # }}", "#", "`#` isn't expected in an action"),
        ("{{ }}", "{{", "this action is empty"),
        ("{{ .Name | }}", "{{", "a value is missing"),
        ("{{ end }}", "{{", "`end` has no beginning"),
        ("a {{ else }}", "{{", "`else` has no beginning"),
        ("{{ if .Name }}a", "{{", "this has no `{{ end }}`"),
        ("{{ if .Name }}a{{ else }}b{{ else }}c{{ end }}", "{{", "`else` stands twice"),
        ("{{ range .Match }}", "{{", "this has no `{{ end }}`"),
        ("{{ break }}", "break", "`break` stands only in a `range`"),
        ("{{ $x }}", "$x", "there is no variable `$x`"),
        ("{{ $x = 1 }}", "$x", "there is no variable `$x`"),
        ("{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}", "$x", "there is no variable `$x`"),
        ("{{ (.Name }}", "(", "this parenthesis isn't closed"),
        ("{{ .Name ) }}", ")", "`)` isn't expected here"),
        ("{{ parseInt .Name 16 }}", "parseInt", "`parseInt` takes 3 values"),
        ("{{ len }}", "len", "`len` takes one value"),
        ("{{ slice .Name 1 2 3 }}", "slice", "`slice` takes 1 to 3 values"),
        ("{{ eq .Name }}", "eq", "`eq` takes 2 values at least"),
        ("{{ len parseInt }}", "parseInt", "`parseInt` isn't a value; put a call within another into parentheses"),
        ("{{ .Name 1 }}", ".Name", "`.Name` takes no values"),
        ('{{ printf "%y" 1 }}', "printf", "`%y` of printf isn't supported"),
        ('{{ printf "%d %d" 1 }}', "printf", "the format of printf takes 2 values, and there are 1"),
        ("{{ if true }}" * 60, "{{", "the template is nested too deep"),
    ],
)
def test_what_is_no_template_is_told_with_its_place(text: str, wrong: str, sentence: str) -> None:
    with pytest.raises(TemplateError) as told:
        compile_template(text, SHAPE)
    error = told.value
    assert text[error.offset : error.offset + error.length] == wrong
    said = f"{error}; {error.hint}" if error.hint else str(error)
    assert said.partition("; there are")[0] == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{{ index .Match 3 }}", "index out of range: 3"),
        ("{{ index .Match -1 }}", "index out of range: -1"),
        ('{{ index .Match "a" }}', "index out of range: a"),
        ("{{ index .Number 0 }}", "index of what is no list, map or text"),
        ("{{ slice .Name 5 3 }}", "slice from 5 to 3"),
        ("{{ len .Number }}", "len of what is no list, map or text"),
        ("{{ eq .Number .Name }}", "incompatible types for comparison: 7 and 'ip-10.org.'"),
        ("{{ lt true false }}", "these have no order"),
        ('{{ parseInt "100" 16 8 }}', "parseInt: '100' is no number of base 16 with 8 bits"),
        ('{{ parseInt "-1" 10 8 }}', "parseInt: '-1' is no number of base 10 with 8 bits"),
        ('{{ parseInt "9" 8 8 }}', "parseInt: '9' is no number of base 8 with 8 bits"),
        ('{{ parseInt "" 10 8 }}', "parseInt: '' is no number of base 10 with 8 bits"),
        ('{{ parseInt "1_0" 10 8 }}', "parseInt: '1_0' is no number of base 10 with 8 bits"),
        ('{{ parseInt "1" 1 8 }}', "parseInt: '1' is no number of base 1 with 8 bits"),
        ('{{ printf "%d" .Name }}', "printf: %d doesn't fit 'ip-10.org.'"),
        ('{{ printf "%9999d" 1 }}', "printf: the width is too large"),
        ("{{ range .Number }}{{ .X }}{{ end }}", "there is no field .X of 0"),
        ("{{ range .Name }}{{ end }}", "range over what is no list, map or number"),
        ("{{ range 99999 }}{{ end }}", "range over too large a number"),
        ("{{ range 60000 }}xxxxxxxxxx{{ end }}", "the template makes more than 65536 characters"),
        ("{{ .Question }}", "this value can't be printed; name one of its fields"),
        ('{{ .Meta "a" "b" }}', "this takes another number of values"),
    ],
)
def test_what_cannot_be_filled_in_is_an_error(text: str, sentence: str) -> None:
    with pytest.raises(ExecutionError) as told:
        filled(text)
    assert str(told.value) == sentence


def test_a_text_without_actions_is_fixed() -> None:
    assert compile_template("a {{/* b */}}", SHAPE).is_fixed
    assert not compile_template("a {{ 1 }}", SHAPE).is_fixed


_PIECES = ["{{", "}}", "{{-", "-}}", "if", "else", "end", "range", "with", ".Name", "$x", ":=", "|", "(", ")"]
_PIECES += ["1", "index", ".", "/*", "*/", "%d", "printf", "é"]
_PIECES += [" ", "\n", '"a"']


@given(st.lists(st.sampled_from(_PIECES), max_size=20))
def test_any_text_is_a_template_or_a_mistake_within_it(pieces: list[str]) -> None:
    text = "".join(pieces)
    offset = 0
    try:
        filled(text)
    except TemplateError as error:
        offset = error.offset
    except ExecutionError:
        pass
    assert 0 <= offset <= len(text)
