"""What a killed run leaves of a feature that it was making: removed, so that no one takes it for a damaged one."""

import zarr

from pipeline.errors import UserError
from pipeline.store.location import StoreLocation
from pipeline.store.reader import reporting_damage

# What stands under a feature's name; a question feature has the first two.
_PARTS = frozenset({"zarr.json", "values", "state", "reason", "made_by"})


def clear_half_made(location: StoreLocation, root: zarr.Group, group: str) -> None:
    """Remove the features of `group` that have no description yet: it is written last, before any value.

    Raises `UserError` where one has values or states all the same: its description was lost, and its making is over.
    """
    for name in sorted(location.names(group) - {"zarr.json", "text"}):
        path = f"{group}/{name}"
        parts = location.names(path)
        # What others leave there, such as .DS_Store or a folder of notes, is no feature.
        if not parts & _PARTS:
            continue
        with reporting_damage(location.address, path):
            found = root.get(path)
        if isinstance(found, zarr.Group) and "spec" in found.attrs:
            continue
        if parts - _PARTS or any(location.names(f"{path}/{part}") - {"zarr.json"} for part in parts):
            raise UserError(
                f"store {location.address}: {path} has values but no description: the store is damaged, extract it anew"
            )
        del root[path]
