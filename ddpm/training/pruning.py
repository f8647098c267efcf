"""Which snapshots to keep of a training that may have made any number of them."""


def kept_snapshots(due: list[int], count: int) -> list[int]:
    """At most `count` of the steps `due`, ascending, as are left if one is dropped whenever there is one too many.

    Any later average is rebuilt from these, and a narrow one needs them close together where it ends; so they crowd towards the
    last as steps (1 - u^1.5) with even u do. A function of `due` alone, whatever files there are.
    """
    kept: list[int] = []
    for step in due:
        kept.append(step)
        if len(kept) > count:
            places = [(1 - s / step) ** (2 / 3) for s in kept]
            # The room that each would leave between its neighbours, the start of the training among them; the last stays.
            rooms = [before - after for before, after in zip([1.0, *places], places[1:], strict=False)]
            kept.pop(rooms.index(min(rooms)) if rooms else 0)
    return kept
