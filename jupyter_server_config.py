"""JupyterLab's settings for this clone: opening and saving a notebook changes nothing in it.

`make` copies this file into .venv/etc/jupyter, where every Jupyter server of that environment reads it."""
from pathlib import Path

c = get_config()   # noqa: F821, Jupyter's own

def save_as_committed(model, path, contents_manager, **_):
    "Leave out what differs from machine to machine: versions, counts, names of kernels."
    folder = (Path(contents_manager.root_dir)/path.strip('/')).parent
    if model['type']!='notebook' or folder.name!='nbs' or not (folder.parent/'settings.ini').is_file():
        return
    from nbdev.clean import clean_nb
    clean_nb(model['content'], allowed_cell_metadata_keys=['tags'])

c.ContentsManager.pre_save_hook = save_as_committed
