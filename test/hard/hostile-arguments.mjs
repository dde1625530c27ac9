// Hostile arguments to every exported function, each batch in a child process, so that a crash is a
// failure that names its case.
//   node test/hard/hostile-arguments.mjs [cases=60] [pairs=300] [seed=1] [functions=name]
// cases: attacks on each function; pairs: pairs of bad dimensions of each function (all: every one).
// A failed case is run again, alone and in this process, with
//   node test/hard/hostile-arguments.mjs function=NAME seed=S case=K

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fail, figure, figuresOf, inParallel, number, runChild, text } from './support/program.mjs';

const CHILD = new URL('support/hostile-child.mjs', import.meta.url);
const SELF = 'node test/hard/hostile-arguments.mjs';
/** More functions than this in a child would put too much behind one crash. */
const PER_CHILD = 12;

async function namesOfFunctions() {
  const { output, code } = await runChild(CHILD, { list: 1 });
  if (code !== 0) throw new Error(`the functions cannot be listed:\n${output}`);
  return JSON.parse(output.trim());
}

async function attack(names, parameters, folder, figures) {
  const progress = path.join(folder, `${names[0]}.progress`);
  const { code, signal, output } = await runChild(CHILD, {
    ...parameters,
    functions: names.join(','),
    progress,
  });
  figuresOf(output, figures);
  if (code === 0) return;
  if (code === 1) {
    fail(`hostile arguments\n${output}`);
    return;
  }
  // Not the end that the child chose: it was ended.
  const noted = existsSync(progress) ? readFileSync(progress, 'utf8').trim() : `${names[0]} start`;
  const [, name, index] = /^(.*) (.*)$/.exec(noted);
  fail(
    `CRASH (${signal ?? `exit code ${code}`}) in ${name}; again: ` +
      `${SELF} function=${name} seed=${parameters.seed} case=${index}\n${output}`,
  );
}

async function main() {
  const parameters = {
    cases: number('cases', 60),
    pairs: text('pairs', '300'),
    seed: number('seed', 1),
  };
  const only = text('functions');
  const names = (await namesOfFunctions()).filter((name) => name.includes(only));
  const count = Math.min(PER_CHILD, Math.ceil(names.length / 4));
  const groups = [];
  for (let i = 0; i < names.length; i += count) groups.push(names.slice(i, i + count));
  const folder = mkdtempSync(path.join(tmpdir(), 'cluster-attention-'));
  const figures = new Map();
  try {
    await inParallel(groups, (group) => attack(group, parameters, folder, figures));
  } finally {
    rmSync(folder, { recursive: true });
  }
  figure('hostile arguments: functions attacked', names.length);
  for (const [name, value] of figures) figure(name, value);
}

if (text('function')) {
  const { code, signal, output } = await runChild(CHILD, {
    functions: text('function'),
    seed: number('seed', 1),
    case: text('case'),
    cases: number('cases', 60),
    pairs: text('pairs', 'all'),
  });
  console.log(output);
  console.log(signal ?? `exit code ${code}`);
  process.exitCode = code ?? 1;
} else {
  await main();
}
