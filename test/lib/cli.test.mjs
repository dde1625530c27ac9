import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { required, root } from './support/package.mjs';

function run(...parameters) {
  const file = path.join(root, 'dist', 'cli.js');
  const { status, stdout, stderr } = spawnSync(process.execPath, [file, ...parameters], {
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

test('info prints what info() knows', () => {
  const { status, stdout, stderr } = run('info');
  expect([status, stderr]).toEqual([0, '']);
  const { version, instructionSets } = required.info();
  expect(stdout).toContain(version);
  expect(stdout).toContain(instructionSets.used);
  expect(stdout).toMatch(/cuda/i);
});

test('--version and --help', () => {
  expect(run('--version')).toEqual({
    status: 0,
    stdout: `${required.info().version}\n`,
    stderr: '',
  });
  const { status, stdout } = run('--help');
  expect(status).toBe(0);
  expect(stdout).toContain('info');
});

test.each(['info', 'bench', 'tune', 'compare', 'report'])('%s --help', (command) => {
  const { status, stdout, stderr } = run(command, '--help');
  expect([status, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(new RegExp(`^Usage: cluster-attention ${command}`));
  expect(run(command, '-h').stdout).toBe(stdout);
  expect(run('help', command).stdout).toBe(stdout);
});

test('help of what is no command is refused', () => {
  const { status, stdout, stderr } = run('help', 'nonsense');
  expect([status, stdout]).toEqual([2, '']);
  expect(stderr).toContain('unknown command "nonsense"');
});

test('info takes nothing else', () => {
  for (const surplus of ['more', '--more']) {
    const { status, stdout, stderr } = run('info', surplus);
    expect([status, stdout]).toEqual([2, '']);
    expect(stderr).toContain(surplus);
  }
});

test.each([[[]], [['nonsense']], [['__proto__']]])('%o is refused with a hint', (parameters) => {
  const { status, stdout, stderr } = run(...parameters);
  expect(status).not.toBe(0);
  expect(stdout).toBe('');
  expect(stderr).toContain('--help');
});
