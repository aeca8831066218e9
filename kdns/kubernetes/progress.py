"""How far a watch has come in the history of an API server, and what can't be true any more since.

Pure: versions go in, decisions come out; knows no requests, no objects and no clock.
Law: the API concepts of Kubernetes (resource versions), and this table. A version is opaque by law and a number in
fact: of two numbers the newer one counts, of two texts the one that came later.

| what happens                           | resume  | floor | told    | removed | behind | past |
| -------------------------------------- | ------- | ----- | ------- | ------- | ------ | ---- |
| a list of version V has ended          | = V     | V     | = V     | emptied | 0      | none |
| an event of version V                  | V *     | V *   | V       |         | 0 *    |      |
| a bookmark of version V                | V *     | V *   |         |         | 0 *    |      |
| an audit has seen the server at V      |         | V     |         |         |        |      |
| an audit has found an object gone at V |         |       |         | + V     |        |      |
| the server has forgotten that place    | none    |       |         |         | **     |      |
| the server has not got as far yet      |         |       |         |         | + 1    |      |
| a list of version V is from the past   |         |       |         |         |        | V    |
| and another one is, seconds later      | none    | none  |         |         |        | none |
| a list is wanted for any other reason  | none    |       |         |         |        |      |

`V` stands for the newer of V and what is there, `= V` for V itself.
*  while there is a place to resume at: what a list that is not whole yet says moves nothing.
** as many as make the next list one of what the server has now, if it was a list that it had forgotten the place of.
"""

from __future__ import annotations

from kdns.kubernetes.changes import Version, older

# A server that is behind what we have seen gets this many chances to catch up.
MOST_BEHIND = 3


class Progress:
    """What a watch remembers of versions.

    `resume` is where the next watch goes on; without it there is a list first. `floor` is the newest version that was
    ever seen: no list may be older, or what is new would be taken for gone. `removed` are the objects that audits have
    taken out since the last list.
    """

    def __init__(self) -> None:
        self.resume: Version = ""
        self.floor: Version = ""
        self.removed: dict[str, Version] = {}
        # The newest version that an event or a list had; a bookmark's is a promise only.
        self._told: Version = ""
        # How often the server was behind us since we last got on.
        self._behind = 0
        # The version of a list from the past, if the last one was.
        self._past: Version = ""

    # What happens

    def listed(self, version: Version) -> None:
        """A list was read to its end."""
        self.resume = self._told = version
        self.floor = _newer(self.floor, version)
        self.removed.clear()
        self._behind, self._past = 0, ""

    def event(self, version: Version) -> None:
        """An event was told; the server tells them in order."""
        self._told = _newer(self._told, version)
        self.bookmark(version)

    def bookmark(self, version: Version) -> None:
        """All up to this version was told."""
        if version == "" or self.resume == "" or older(version, self.resume):
            return
        self.resume = version
        self.floor = _newer(self.floor, version)
        self._behind = 0

    def seen_at(self, version: Version) -> None:
        """Somebody else has seen the server at this version."""
        # What is no number can't be told to be newer, and a watch has seen what it has seen.
        if self.floor == "" or older(self.floor, version):
            self.floor = version

    def taken_out(self, key: str, version: Version) -> None:
        """An audit has found that an object was gone at this version."""
        self.removed[key] = version

    def start_over(self) -> None:
        """There is to be a list next."""
        self.resume = ""

    def forgotten(self) -> None:
        """The server has forgotten the place at which something was to begin (410 Gone)."""
        if self.resume == "":
            # It was a list that began there: what the store has now will do.
            self._behind = MOST_BEHIND
        self.resume = ""

    def behind(self) -> bool:
        """The server has not got as far yet. Returns whether that was once too often to resume."""
        self._behind += 1
        return self.resume != "" and self._behind >= MOST_BEHIND

    def from_the_past(self, version: Version) -> bool:
        """A list was older than what was seen. Returns whether that proves that the history itself was set back.

        One may come from a server that is behind. Only if another one, some seconds later, is from the past too is
        the past what holds now (etcd was restored from a backup).
        """
        if self._past == "":
            self._past = version
            return False
        self.resume = self.floor = self._past = ""
        return True

    # What follows

    @property
    def not_older(self) -> Version:
        """What the next list is asked to be not older than; empty where it is to be what the store has now."""
        return "" if self._behind >= MOST_BEHIND or self._past != "" else self.floor

    def is_past(self, version: Version) -> bool:
        """Whether the present can't be as old as that."""
        return older(version, self.floor)

    def is_late(self, version: Version, key: str, held: Version | None) -> bool:
        """Whether an event of this version is overtaken: by the version of its object that is held, or by its end.

        An object that isn't known any more has gone; told again from before its end it would come back.
        """
        return older(version, self._told if held is None else held) or older(version, self.removed.get(key, ""))


def _newer(held: Version, told: Version) -> Version:
    return held if older(told, held) else told
