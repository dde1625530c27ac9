// An empty project somewhere else, as a user has it, and the README's examples to run in it.
import { spawnSync } from 'node:child_process';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import { inject } from 'vitest';

const nodes = inject('nodes');
const npms = inject('npms');
const first = (versions) => versions.keys().next().value;

/** The Node binary of a major version, of the one that is used by default. */
export const nodeOf = (major = first(nodes)) => nodes.get(major);
/** The major version of the Node that is used by default. */
export const NODE = first(nodes);

/** The JavaScript blocks of the README: CommonJS, or an ES module that imports. */
export function examplesOfReadme() {
  const readme = readFileSync(join(inject('root'), 'README.md'), 'utf8');
  return [...readme.matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code);
}

/** An empty project in a fresh folder, `name` part of its path. */
export function project(name = 'project') {
  const folder = join(mkdtempSync(join(inject('work'), 'user-')), name);
  mkdirSync(folder);
  writeFileSync(join(folder, 'package.json'), '{ "private": true }\n');
  return folder;
}

/** Runs a program in a folder; its exit code and all that it printed. */
export function run(folder, program, args, { env = {}, ...options } = {}) {
  const { status, signal, stdout, stderr, error } = spawnSync(program, args, {
    cwd: folder,
    encoding: 'utf8',
    env: { ...cleanEnvironment(), ...env },
    ...options,
  });
  if (error) throw error;
  return { status, signal, output: `${stdout}${stderr}` };
}

/** The environment of a user's shell, without what npm and the test runner put into this one. */
function cleanEnvironment() {
  const kept = Object.entries(process.env).filter(
    ([name]) =>
      !/^(npm_(?!config_(registry|cache|userconfig))|NODE_(OPTIONS|PATH|ENV|V8_COVERAGE)|VITEST|CLUSTER_|CMAKE_)/.test(
        name,
      ),
  );
  return Object.fromEntries(kept);
}

/** Installs a tarball with an npm of its own version. */
export function install(folder, tarball, { flags = [], node, npm = first(npms), env } = {}) {
  const quiet = ['--no-audit', '--no-fund', '--foreground-scripts'];
  const command = [npms.get(npm), 'install', tarball, ...quiet, ...flags];
  return run(folder, node ?? nodeOf(), command, { env });
}

/** Installs it where that must succeed. */
export function installed(folder, options, tarball = inject('tarball')) {
  const { status, output } = install(folder, tarball, options);
  if (status !== 0 || /npm error/.test(output)) throw new Error(`not installed:\n${output}`);
  return folder;
}

/** Whether a project's package was built where it is installed. */
export const builtHere = (folder) =>
  existsSync(join(folder, 'node_modules', 'cluster-attention', 'build', 'Release'));

/** Prints which addon was loaded. */
export const hasBuild = 'console.log(require("cluster-attention").info().build)';

/** Writes a file of the project and runs it. */
export function execute(folder, file, code, { node = nodeOf(), ...options } = {}) {
  writeFileSync(join(folder, file), code);
  return run(folder, node, [file], options);
}

/** Runs the README's examples; throws what went wrong. */
export function runExamples(folder, options) {
  for (const [i, code] of examplesOfReadme().entries()) {
    const file = `example-${i}.${/^import /m.test(code) ? 'mjs' : 'cjs'}`;
    const { status, output } = execute(folder, file, code, options);
    if (status !== 0) throw new Error(`${file} failed:\n${output}`);
  }
}

function find(program) {
  for (const folder of process.env.PATH.split(delimiter)) {
    const file = join(folder, program);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // the next folder
    }
  }
  throw new Error(`${program} is not on PATH`);
}

/** A folder to be the whole PATH: Node, a shell, and the programs named. */
export function pathWith(...programs) {
  const folder = mkdtempSync(join(inject('work'), 'path-'));
  for (const program of ['sh', ...programs]) symlinkSync(find(program), join(folder, program));
  symlinkSync(nodeOf(), join(folder, 'node'));
  return folder;
}
