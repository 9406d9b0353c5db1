"""launch/probes.sh: a file that states probe jobs and runs them one after the other."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

from launched import calls, environment, installed, start

PROBES = Path(__file__).parents[2] / 'launch' / 'probes.sh'

# In place of medjax: writes its words to the file `calls`. --seed says how it ends.
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "$@")" >>calls
case $* in
    *seed=1*) exit 1 ;;
    *seed=3*) trap 'touch calls.ended; exit 143' TERM; touch begun; for ((;;)); do sleep 0.05; done ;;
esac
"""


def stated(folder: Path, *jobs: str, runs: str = '"my run" other', which: str = '') -> Path:
    """A copy of the file that states other jobs, with a program `medjax` in reach."""
    here = (
        f'RUNS=({runs})\nDATA=(a "b c")\nWHICH=({which})\njobs_of() {{\n    :\n    '
        + '\n    '.join(jobs)
        + '\n}\n# ---'
    )
    text, count = re.subn(r'^RUNS=.*?^# ---', lambda _: here, PROBES.read_text(), flags=re.M | re.S)
    assert count == 1
    (folder / 'my run' / 'probes').mkdir(parents=True)  # `other` has no result, so it gets no report
    return installed(folder, 'probes.sh', text, FAKE)


def test_each_job_of_each_run_and_data_set_and_then_the_reports(tmp_path):
    done = start(stated(tmp_path, 'job --probes knn', 'job --probes linear --seed=1', which='--steps all'))
    assert done.returncode == 1 and '4 command(s) failed' in done.stderr
    assert calls(tmp_path) == [
        *(
            ['probe', '--run', run, '--data', data, '--steps', 'all', *job]
            for run in ('my run', 'other')
            for data in ('a', 'b c')
            for job in (['--probes', 'knn'], ['--probes', 'linear', '--seed=1'])
        ),
        ['report', '--run', 'my run'],
    ]


def test_print_starts_nothing_and_its_lines_are_commands(tmp_path):
    done = start(stated(tmp_path, 'job --groups "sex*age"', runs='"my run"'), '--print')
    assert done.returncode == 0 and not (tmp_path / 'calls').exists()
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    assert words == [
        ['medjax', 'probe', '--run', 'my run', '--data', data, '--groups', 'sex*age'] for data in ('a', 'b c')
    ]
    subprocess.run(done.stdout.splitlines()[1], shell=True, cwd=tmp_path, env=environment(tmp_path), check=True)
    assert ['medjax', *calls(tmp_path)[0]] == words[1]


def test_mistakes_are_found_before_the_first_job(tmp_path):
    file = stated(tmp_path, 'job')
    assert start(file, '--prnt').returncode == 2
    for name, value, sentence in (('RUNS', '()', 'no run'), ('DATA', '()', 'no data set'), ('job', '', 'no job')):
        text = re.sub(r'^    job$', '', file.read_text(), flags=re.M) if name == 'job' else file.read_text()
        broken = tmp_path / 'broken.sh'
        broken.write_text(re.sub(rf'^{name}=\(.*\)', f'{name}={value}', text, flags=re.M))
        broken.chmod(0o755)
        done = start(broken)
        assert done.returncode == 2 and sentence in done.stderr and not (tmp_path / 'calls').exists()


def test_a_signal_ends_all_jobs(tmp_path):
    file = stated(tmp_path, 'job --seed=3', 'job')
    job = subprocess.Popen([str(file)], cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    for _ in range(2400):
        if (tmp_path / 'begun').exists():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 130 and 'the same command goes on' in said
    assert (tmp_path / 'calls.ended').exists() and len(calls(tmp_path)) == 1
