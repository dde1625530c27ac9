'use strict';
// Makes a release, up to but not including its publication:
//   npm run release -- 0.2.0 [--dry-run]
// On a clean checkout of main, with nvcc, the compilers for Arm and QEMU: version and changelog, build,
// every test, prebuilt addons and the CUDA backend, the packed tarball tested as users install it,
// checksums. Ends by saying what is left to do by hand.
// --dry-run changes no file outside build/ and prebuilds/ and leaves the version as it is.

const { execFileSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { parseArgs } = require('node:util');
const { hasCompiler } = require('./build-cuda.cjs');

const root = join(__dirname, '..');
const folder = join(root, 'build', 'release');

/** Runs a step. `cuda` says which GPUs the CUDA backend is built for; unless for the package, none. */
function run(program, args, cuda = '0') {
  console.log(`\n> ${program} ${args.join(' ')}`);
  const env = { ...process.env, CLUSTER_ATTENTION_CUDA: cuda };
  execFileSync(program, args, { cwd: root, stdio: 'inherit', env });
}

const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();

/** The numbers of a version, for comparing. */
function numbers(version) {
  const match = /^(\d+)\.(\d+)\.(\d+)$/.exec(version);
  if (!match) throw new Error(`"${version}" is no version such as 1.2.3`);
  return match.slice(1).map(Number);
}

/** Whether version `a` comes after version `b`. */
function isLater(a, b) {
  const [x, y] = [numbers(a), numbers(b)];
  const step = x.findIndex((part, i) => part !== y[i]);
  return step >= 0 && x[step] > y[step];
}

/** The section of a version: what was committed since the last tag, newest last. */
function changelogSection(version, date, subjects) {
  return `## ${version} (${date})\n\n${subjects.map((subject) => `- ${subject}\n`).join('')}\n`;
}

/** The changelog with a section in front of the others. */
function withSection(changelog, section) {
  const first = changelog.indexOf('\n## ');
  const head = first < 0 ? changelog.trimEnd() + '\n' : changelog.slice(0, first);
  const rest = first < 0 ? '' : changelog.slice(first + 1);
  return `${head.trimEnd()}\n\n${section}${rest}`;
}

/** Subjects of the commits since the last tag, or of all. */
function subjectsSinceLastTag() {
  const tag = git('tag', '--list', 'v*', '--sort=-v:refname').split('\n')[0];
  const range = tag ? [`${tag}..HEAD`] : [];
  return git('log', '--no-merges', '--reverse', '--format=%s', ...range).split('\n');
}

function demandCleanMain() {
  if (git('status', '--porcelain') !== '') throw new Error('the checkout has changes: commit them');
  const branch = git('rev-parse', '--abbrev-ref', 'HEAD');
  if (branch !== 'main') throw new Error(`releases are made from main, this is ${branch}`);
}

function setVersion(version) {
  run('npm', ['version', version, '--no-git-tag-version']);
  const file = join(root, 'CHANGELOG.md');
  const date = new Date().toISOString().slice(0, 10);
  const section = changelogSection(version, date, subjectsSinceLastTag());
  writeFileSync(file, withSection(readFileSync(file, 'utf8'), section));
}

/** SHA-256 of every file of a folder, in the format of sha256sum. */
function checksums(directory) {
  return readdirSync(directory)
    .filter((name) => name !== 'SHA256SUMS')
    .toSorted()
    .map((name) => {
      const hash = createHash('sha256')
        .update(readFileSync(join(directory, name)))
        .digest('hex');
      return `${hash}  ${name}\n`;
    })
    .join('');
}

function release(version, dryRun) {
  const { version: current } = require('../package.json');
  if (!hasCompiler()) throw new Error('there is no nvcc: the CUDA backend is part of a release');
  if (!isLater(version, current)) throw new Error(`${version} does not come after ${current}`);
  demandCleanMain();
  if (!dryRun) setVersion(version);
  run('npm', ['ci']);
  run('npm', ['run', 'lint']);
  run('npm', ['test']);
  run('npm', ['run', 'test:package'], 'release'); // builds what is prebuilt first
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  run('npm', ['pack', '--pack-destination', folder]);
  writeFileSync(join(folder, 'SHA256SUMS'), checksums(folder));
  console.log(`\n${readFileSync(join(folder, 'SHA256SUMS'), 'utf8')}`);
  if (dryRun) return console.log('dry run: nothing was changed, nothing is to be published');
  console.log(`Left to do, after a look at CHANGELOG.md and ${folder}:
  git commit -am "Release ${version}" && git tag v${version} && git push --follow-tags
  npm publish --provenance (by the workflow that the tag starts)`);
}

module.exports = { changelogSection, checksums, isLater, withSection };

if (require.main === module) {
  try {
    const { values, positionals } = parseArgs({
      options: { 'dry-run': { type: 'boolean', default: false } },
      allowPositionals: true,
    });
    if (positionals.length !== 1) throw new Error('usage: npm run release -- VERSION [--dry-run]');
    release(positionals[0], values['dry-run']);
  } catch (error) {
    console.error(`release: ${error.message}`);
    process.exitCode = 1;
  }
}
