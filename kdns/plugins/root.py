"""`root`: accepted for CoreDNS's Corefiles; a path is relative to the folder in which kdns was started."""

from __future__ import annotations

from typing import Annotated, ClassVar

from kdns.chain import Block, Plugin
from kdns.options import Options, argument, word


class RootOptions(Options, directive="root"):
    path: Annotated[str, argument(word("PATH")), "the folder of the files that directives name, in CoreDNS"]


class Root(Plugin):
    name = "root"
    options: ClassVar[type[Options]] = RootOptions

    def __init__(self, options: RootOptions, block: Block) -> None:
        self._path = options.path

    def notices(self) -> tuple[str, ...]:
        """Where another path would be meant, its user has to write it out."""
        return (f"no effect: a relative path is not one in `{self._path}` but in the folder in which kdns was started",)
