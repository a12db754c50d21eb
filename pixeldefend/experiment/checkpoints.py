"""Arrays on disk, by orbax: training checkpoints and weights."""

import hashlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from pixeldefend.experiment import files, foreign, processes

_HASH = "sha256"  # in a checkpoint's JSON


class UnreadableError(ValueError):
    """Weights or a checkpoint that are damaged or of another model."""


class Checkpoints:
    """Numbered checkpoints of a training run: a pytree of arrays and a little JSON."""

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        """Opens or makes `folder`; only the last `keep` checkpoints stay.

        Raises:
          UnreadableError: something in it is no file that could be read.
        """
        import orbax.checkpoint as ocp  # slow to import

        self._ocp = ocp
        self.folder = files.expanded(folder)
        first = processes.is_first()
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob("*.orbax-checkpoint-tmp"):
                path.rmtree()  # what a kill left of one
        try:
            foreign.check_all_regular(self.folder)
        except (ValueError, OSError) as error:
            raise unreadable(self.folder, error) from error
        processes.barrier()
        self._manager = ocp.CheckpointManager(
            files.absolute(folder),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep if first else None,
                create=False,
                read_only=not first,
                multiprocessing_options=_alone(),
            ),
        )

    def save(self, step: int, state: Any, extra: dict) -> None:
        """Saves in the background; a checkpoint appears only once it is complete.

        Only the first process saves; the state is the same in all of them. A hash of
        all goes with it, for not every damage keeps them from being read.
        """
        if not processes.is_first():
            return
        state = jax.tree.map(np.asarray, jax.device_get(state))
        extra = extra | {_HASH: _hash(state, extra)}
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state), extra=args.JsonSave(extra)
            ),
        )

    def restore(self, like: Any) -> tuple[int, Any, dict] | None:
        """The newest whole checkpoint as (step, state, extra), or None without any.

        One that is damaged is removed where an older one is whole.

        Args:
          like: a state of the same structure, shapes and types.

        Raises:
          UnreadableError: all are damaged or of another model.
        """
        steps = processes.agreed(sorted(self._manager.all_steps(), reverse=True))
        damaged: list[tuple[int, UnreadableError]] = []
        for step in steps:
            try:
                found = self._restore(step, _here(like))
            except UnreadableError as error:
                damaged.append((step, error))
                continue
            for bad, reason in damaged:
                print(f"{reason}; resuming from step {step}")
                if processes.is_first():
                    (self.folder / str(bad)).rmtree()
            if damaged:
                self._manager.reload()
            return step, *found
        if damaged:
            raise damaged[0][1]
        return None

    def _restore(self, step: int, abstract: Any) -> tuple[Any, dict]:
        """The state and extra of a step; UnreadableError where it is not whole."""
        args = self._ocp.args
        try:
            restored = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(abstract), extra=args.JsonRestore()
                ),
            )
            state, extra = restored["state"], dict(restored["extra"])
            # One of an older version has none.
            told = extra.pop(_HASH, None)
            if told is not None and told != _hash(jax.device_get(state), extra):
                raise ValueError("its contents are not what was saved")
        except Exception as error:  # orbax raises many kinds for a damaged folder
            raise unreadable(self.folder / str(step), error) from error
        return state, extra

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _hash(state: Any, extra: dict) -> str:
    text = json.dumps(extra, sort_keys=True) + fingerprint(state)
    return hashlib.sha256(text.encode()).hexdigest()


def _here(like: Any) -> Any:
    """Shapes and types, of arrays on this process's first device."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), like
    )


def _alone() -> Any:
    """Has orbax work in this process without asking the others."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    if processes.count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"own{own}"
    )


def unreadable(path: epath.Path, error: Exception | str) -> UnreadableError:
    """The error for a folder that cannot be read, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    # Of a message of tensorstore's, not its specification.
    reason = reason.partition(" See full TensorStore")[0][:300].rstrip(".")
    return UnreadableError(
        f"cannot read the checkpoint {path}: {reason}; it is damaged or of another "
        "model: remove it or name another folder"
    )


def save_weights(folder: epath.PathLike, params: Any) -> None:
    """Saves a pytree of arrays under `folder` (orbax), replacing what was there."""
    import orbax.checkpoint as ocp

    if not processes.is_first():
        return
    folder = files.absolute(folder)
    params = jax.tree.map(np.asarray, jax.device_get(params))
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
        checkpointer.save(folder, params, force=True)
    if not files.is_remote(folder):
        # Only in an object store it is read, and it names the folder it was written to.
        (folder / "commit_success.txt").unlink(missing_ok=True)


def load_weights(folder: epath.PathLike, like: Any) -> Any:
    """Loads a pytree of arrays saved by `save_weights`.

    Args:
      folder: where they are.
      like: the same structure with arrays or `jax.ShapeDtypeStruct`.

    Raises:
      FileNotFoundError: no such folder.
      UnreadableError: damaged, or not of this structure and these shapes.
    """
    import orbax.checkpoint as ocp

    folder = files.absolute(folder)
    if not folder.exists():
        raise FileNotFoundError(f"no weights in {folder}")
    abstract = _here(like)
    try:
        foreign.check_all_regular(folder)
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
            # A restore that fails half-way leaves threads that complain, so compare
            # beforehand.
            stored = _shapes(checkpointer.metadata(folder).item_metadata.tree)
            if stored != _shapes(abstract):
                raise ValueError("its arrays do not have the shapes of this model")
            return checkpointer.restore(folder, abstract)
    except Exception as error:  # orbax raises many kinds for a damaged folder
        raise unreadable(folder, error) from error


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by path; sequences and their indices as text, as orbax stores them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf
        for path, leaf in leaves
    }


def _shapes(tree: Any) -> dict[str, tuple]:
    return {name: tuple(leaf.shape) for name, leaf in flat(tree).items()}


def fingerprint(params: Any) -> str:
    """SHA-256 over the bytes of all arrays, to notice damage."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
