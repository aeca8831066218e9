"""Fuzzes the Corefile's parser: `python tests/fuzz/fuzz_corefile.py -max_total_time=60 [FOLDER OF COREFILES]`.

Any bytes give a tree, whose canonical text says the same, or a ConfigError with a place for each mistake.
"""

import sys

import atheris

with atheris.instrument_imports():
    from kdns.corefile import fingerprint, parse, render
    from kdns.errors import ConfigError


def nothing_there(path: str) -> str:
    raise FileNotFoundError(path)


def one_input(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        corefile = parse(text, "Corefile", read=nothing_there, glob=lambda pattern: [])
    except ConfigError as error:
        if not all(problem.place and problem.place.line for problem in error.problems):
            raise AssertionError(text) from error
        return
    assert fingerprint(parse(render(corefile), "again")) == fingerprint(corefile)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
