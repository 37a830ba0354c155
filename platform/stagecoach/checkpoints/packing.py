"""Pieces of a tensor, written short: ranks cut alike, so most pieces follow from the one before."""

from collections.abc import Iterable

from stagecoach.contract.checkpoint import Piece, object_after


def packed(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same boxes in order of their offsets, as few pieces as that order allows."""
    found: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        longer = joined(found[-1], piece) if found else None
        if longer is None:
            found.append(piece)
        else:
            found[-1] = longer
    return tuple(found)


def joined(piece: Piece, following: Piece) -> Piece | None:
    """Both as one; None when the second is not what comes after the first."""
    if (piece.start, piece.size, piece.shape) != (following.start, following.size, following.shape):
        return None
    along = _moved_along(piece, following)
    if along is None or (piece.count > 1 and piece.along != along) or (following.count > 1 and following.along != along):
        return None
    try:
        next_object = object_after(piece.object, piece.count)
    except ValueError:
        return None
    if next_object != following.object:
        return None
    count = piece.count + following.count
    return Piece(  # `replace` takes several times as long, and there may be a million
        object=piece.object, start=piece.start, size=piece.size, offset=piece.offset, shape=piece.shape, count=count, along=along
    )


def _moved_along(piece: Piece, following: Piece) -> int | None:
    """The one dimension along which the second begins where the first ends."""
    moved = [dim for dim, (here, there) in enumerate(zip(piece.offset, following.offset, strict=True)) if here != there]
    if len(moved) != 1:
        return None
    (dim,) = moved
    size = piece.shape[dim] * (piece.count if dim == piece.along else 1)
    return dim if following.offset[dim] == piece.offset[dim] + size else None
