"What the suite tried to break, tallied over all tests, and the report of it."
import pandas as pd

PARTS = dict(
    media='Bad media',
    faults='Faults',
    corruption='Flipped bits',
    hostile='Hostile input',
    numbers='Numbers',
    determinism='Determinism',
    fuzzing='Fuzzing',
    properties='Properties',
    soak='Long runs')
ENDS = ['ok', 'partial', 'refused']   # of a media file
seen = []   # (part, what, how it ended, how many), of tests that passed

def table() -> pd.DataFrame:   # part, what, how, n
    df = pd.DataFrame(seen, columns=['part', 'what', 'how', 'n'])
    df = df.groupby(['part', 'what', 'how'], sort=False, as_index=False).n.sum()
    return df.sort_values('part', key=lambda o: o.map(list(PARTS).index), kind='stable', ignore_index=True)

def summary() -> str:
    parts = table().groupby('part', sort=False).n.sum()
    return ', '.join(f'{n:,} {PARTS[k].lower()}' for k,n in parts.items())

def by_end(df) -> pd.DataFrame:   # what, ok, partial, refused
    "Kinds of media files, and how many of each ended how."
    media = df[df.part=='media'].pivot_table(
        index='what', columns='how', values='n', aggfunc='sum', fill_value=0, sort=False)
    return media.reindex(columns=ENDS, fill_value=0).reset_index()

def counted(df, kinds:int) -> str:
    "The first note: what was tried, and how often."
    def count(part, word=''):
        said = df.what+' '+df.how
        return int(df[(df.part==part) & said.str.contains(word)].n.sum())
    return '; '.join([
        f"{kinds} kinds of media in {df.n[0]:,} files",
        f"{count('faults', 'kill -9'):,} kills survived",
        f"{count('corruption'):,} bits flipped, {count('corruption', 'noticed|named'):,} of them noticed "
        "and the others without effect",
        f"{count('hostile'):,} hostile inputs refused",
        f"{count('fuzzing'):,} executions fuzzed and {count('properties'):,} examples of properties",
        f"{count('soak'):,} videos in one extraction."])

MEDIA_NOTE = ('Made by the tests with PyAV, every one read in full. '
    'No file ended in another way: no crash, no other exception, no step too few.')
NOTES = [
    'Written by make test-full, from the tests themselves: a line counts what passed, and nothing is written '
    'when a test fails. So there was no silent wrong result and no loss: each test compares bytes or numbers '
    'with an undisturbed run, or asks for an error that names the file.',
    'make test has the same tests in a short form.']

def write(out) -> str:
    "robustness.* and robustness_media.* in a folder of reports."
    from hcms.core import commit, versions
    from hcms.reports.artifacts import write_index, write_table, write_top_index
    df = table()
    meta = dict(dataset='demo', simulated=False, versions=versions(), commit=commit())
    media = by_end(df)
    names = dict(
        what='Kind of file',
        ok='all time steps',
        partial='partial: time steps, left out by default',
        refused='refused, file and reason named')
    write_table(media, media.rename(columns=names), 'robustness_media', out,
        'Bad media, and how each file ended', [MEDIA_NOTE], meta)
    ended = f'{media.ok.sum():,} read, {media.partial.sum():,} partial, {media.refused.sum():,} refused'
    total = dict(part='media', what=f'{len(media)} kinds', how=ended, n=media[ENDS].to_numpy().sum())
    df = pd.concat([pd.DataFrame([total]), df[df.part!='media']], ignore_index=True)
    shown = pd.DataFrame({
        'Part': df.part.map(PARTS),
        'What': df.what,
        'tried': df.n.map('{:,}'.format),
        'How it ended, each time': df.how})
    notes = [counted(df, len(media)), *NOTES]
    write_table(df, shown, 'robustness', out, 'What was done to it, and how it ended', notes, meta)
    write_index(out)
    write_top_index(out.parent)
    return str(out/'robustness.md')
