"Sphinx's settings for `make docs`; build.py makes the sources that it reads."
project = 'hcms'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = 'HCMS: hierarchical and conditional modality selection'
html_copy_source = False
html_show_sphinx = False
nb_execution_mode = 'off'               # outputs are stored in the notebooks
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
# Places inside a page are <a id="...">, which MyST does not know; build.py checks them in the finished site.
suppress_warnings = [
    'myst.xref_missing', 'myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
