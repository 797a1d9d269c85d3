"Notebooks in JupyterLab in a real browser. In `make test-full`; skipped where there is no Chromium."
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import pytest
from helpers import BIN, ROOT

CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium')
QUIET = [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
]
IDLE = '.jp-Notebook-ExecutionIndicator[data-status=idle]'
FAILED = [f'.jp-Notebook [data-mime-type="application/vnd.jupyter.{o}"]' for o in ('error', 'stderr')]
CHANGED = """(was) => {
    const o = [...document.querySelectorAll(".jupyter-widgets img")].pop();
    return o && o.src!=was
}"""

def a_free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture
def lab(trained_home, tmp_path):
    "JupyterLab on a copy of nbs/, every cell kept in the page; its address."
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs')
    tracker = tmp_path/'settings'/'@jupyterlab'/'notebook-extension'/'tracker.jupyterlab-settings'
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps(dict(windowingMode='none')))
    port = a_free_port()
    env = dict(os.environ, HCMS_HOME=str(trained_home), HCMS_DATA='', OMP_NUM_THREADS='1')
    env['JUPYTERLAB_SETTINGS_DIR'] = str(tmp_path/'settings')
    command = [BIN/'jupyter', 'lab', '--no-browser', '--allow-root', f'--port={port}']
    command += ['--IdentityProvider.token=', '--ServerApp.password=', f'--ServerApp.root_dir={tmp_path}/nbs']
    p = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api')
                break
            except OSError:
                time.sleep(.5)
        yield f'http://127.0.0.1:{port}'
    finally:
        p.terminate()
        p.wait()

def run_all_cells(page):
    "Run every cell and wait until each has ended."
    code = page.locator('.jp-Notebook .jp-CodeCell')
    def prompts() -> list:
        texts = [code.nth(i).locator('.jp-InputPrompt').inner_text() for i in range(code.count())]
        return [o.strip('[]: ') for o in texts]
    for _ in range(6):   # a page that still loads may not hear the first time
        page.click('text=Run >> nth=0')
        page.click('text=Run All Cells')
        page.wait_for_timeout(5000)
        if any(prompts()):
            break
    end = time.time()+240
    while not all(o.isdigit() for o in prompts()):
        assert time.time()<end, prompts()
        page.wait_for_timeout(500)

@pytest.mark.full
def test_quickstart_in_a_browser(lab, tmp_path):
    "Every cell runs without an error, and moving the budget changes the picture."
    sync = pytest.importorskip('playwright.sync_api')
    if not CHROMIUM:
        pytest.skip('no chromium on this machine')
    with sync.sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport=dict(width=1200, height=1400))
        page.goto(f'{lab}/lab/tree/quickstart.ipynb')
        page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=90_000)
        page.wait_for_selector(IDLE, state='attached', timeout=90_000)
        run_all_cells(page)
        assert not page.locator(', '.join(FAILED)).count()
        picture = page.locator('.jupyter-widgets img').last
        picture.wait_for(timeout=60_000)
        before = picture.get_attribute('src')
        handle = page.locator('.jupyter-widgets .noUi-handle').first
        handle.focus()
        for _ in range(12):
            handle.press('ArrowLeft')
        page.wait_for_function(CHANGED, arg=before, timeout=60_000)
        page.wait_for_timeout(1500)
        wanted = os.environ.get('HCMS_SCREENSHOT')
        shot = wanted or str(tmp_path/'quickstart.png')
        (page if wanted else page.locator('.jp-Notebook')).screenshot(path=shot)
        assert os.path.getsize(shot)>20_000

SCROLLING = """() => {
    const parts = document.querySelectorAll(
        '.jp-Notebook .cm-scroller, .jp-Notebook .jp-OutputArea-output, .jp-Notebook .jp-RenderedHTMLCommon')
    return [...parts].filter(o => o.scrollWidth>o.clientWidth+2).map(o => o.innerText.slice(0, 80))
}"""

@pytest.mark.full
def test_pages_fit_in_a_browser(lab):
    "At 1,280 pixels, beside the file browser, no line of code, table or picture is wider than its place."
    sync = pytest.importorskip('playwright.sync_api')
    if not CHROMIUM:
        pytest.skip('no chromium on this machine')
    with sync.sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport=dict(width=1280, height=1400))
        for name in ('index', '00_core', 'method/03_hlstm', 'reports/05_claims'):
            page.goto(f'{lab}/lab/tree/{name}.ipynb?reset')
            page.wait_for_selector('.jp-Notebook .jp-CodeCell .cm-line', timeout=90_000)
            page.wait_for_timeout(3000)
            assert page.locator('.jp-DirListing').first.is_visible()
            assert page.evaluate(SCROLLING)==[], name
