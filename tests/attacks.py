"What the suite tried to break, tallied over all tests, and the report of it."
import pandas as pd

PARTS = dict(media='Bad media', faults='Faults', corruption='Flipped bits', hostile='Hostile input', numbers='Numbers', determinism='Determinism', fuzzing='Fuzzing', properties='Properties', soak='Long runs')
seen = []   # (part, what, how it ended, how many), of tests that passed

def table() -> pd.DataFrame:   # part, what, how, n
    df = pd.DataFrame(seen, columns=['part', 'what', 'how', 'n']).groupby(['part', 'what', 'how'], sort=False, as_index=False).n.sum()
    return df.sort_values('part', key=lambda o: o.map(list(PARTS).index), kind='stable', ignore_index=True)

def summary() -> str:
    return ', '.join(f'{n:,} {PARTS[k].lower()}' for k,n in table().groupby('part', sort=False).n.sum().items())

def write(out) -> str:
    "robustness.* and robustness_media.* in a folder of reports."
    from hcms.core import commit, versions
    from hcms.report import write_index, write_table, write_top_index
    df,meta = table(),dict(dataset='demo', simulated=False, versions=versions(), commit=commit())
    media = df[df.part=='media'].pivot_table(index='what', columns='how', values='n', aggfunc='sum', fill_value=0, sort=False).reindex(columns=['ok', 'partial', 'refused'], fill_value=0).reset_index()
    names = dict(what='Kind of file', ok='all time steps', partial='partial: time steps, left out by default', refused='refused, file and reason named')
    write_table(media, media.rename(columns=names), 'robustness_media', out, 'Bad media, and how each file ended', ['Made by the tests with PyAV, every one read in full. No file ended in another way: no crash, no other exception, no step too few.'], meta)
    rest = df[df.part!='media']
    total = pd.DataFrame([dict(part='media', what=f'{len(media)} kinds', how=f'{media.ok.sum():,} read, {media.partial.sum():,} partial, {media.refused.sum():,} refused', n=media[['ok', 'partial', 'refused']].to_numpy().sum())])
    df = pd.concat([total, rest], ignore_index=True)
    shown = pd.DataFrame({'Part': df.part.map(PARTS), 'What': df.what, 'tried': df.n.map('{:,}'.format), 'How it ended, each time': df.how})
    count = lambda part, word='': int(df[(df.part==part) & (df.what+' '+df.how).str.contains(word)].n.sum())
    notes = [f"{len(media)} kinds of media in {total.n[0]:,} files; {count('faults', 'kill -9'):,} kills survived; {count('corruption'):,} bits flipped, {count('corruption', 'noticed|named'):,} of them noticed and the others without effect; {count('hostile'):,} hostile inputs refused; {count('fuzzing'):,} executions fuzzed and {count('properties'):,} examples of properties; {count('soak'):,} videos in one extraction.",
             'Written by make test-full, from the tests themselves: a line counts what passed, and nothing is written when a test fails. So there was no silent wrong result and no loss: each test compares bytes or numbers with an undisturbed run, or asks for an error that names the file.',
             'make test has the same tests in a short form.']
    write_table(df, shown, 'robustness', out, 'What was done to it, and how it ended', notes, meta)
    write_index(out); write_top_index(out.parent)
    return str(out/'robustness.md')
