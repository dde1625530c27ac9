import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { differentiable } from './support/gradients.mjs';
import { names } from './support/operations.mjs';
import { imported, required, root } from './support/package.mjs';

const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
const expected = [
  ...names.flatMap((name) => [name, `${name}Sync`]),
  ...differentiable.flatMap((name) => [`${name}Vjp`, `${name}VjpSync`]),
  'DeviceTensor',
  'info',
  'setNumThreads',
  'getNumThreads',
];

test('require gives every function', () => {
  for (const name of expected) expect(required[name], name).toBeTypeOf('function');
});

test('functions carry their own names', () => {
  for (const name of expected) expect(required[name].name).toBe(name);
});

test('named imports give the same functions', () => {
  for (const name of expected) expect(imported[name], name).toBe(required[name]);
});

test('the package imports itself by name, with exactly the names that require gives', () => {
  const script = `
    import { createRequire } from 'node:module';
    import { ${expected.join(', ')} } from 'cluster-attention';
    import * as all from 'cluster-attention';
    const required = createRequire(import.meta.url)('cluster-attention');
    const named = Object.keys(all).filter((name) => name !== 'default' && name !== 'module.exports');
    console.log(JSON.stringify({ named: named.toSorted(), required: Object.keys(required).toSorted() }));
  `;
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: root,
  });
  const { named, required: keys } = JSON.parse(output);
  expect(named.filter((name) => name !== '__esModule')).toEqual(keys);
});

test('nothing but the documented names is exported', () => {
  const extra = Object.keys(required).filter((name) => !expected.includes(name));
  expect(extra).toEqual([]);
});

test('TypeScript before 5.7 reads the declarations: its typed arrays are not generic', () => {
  const folder = path.join(root, 'dist');
  const files = readdirSync(folder).filter((file) => file.endsWith('.d.ts'));
  expect(files).toContain('index.d.ts');
  for (const file of files) {
    const text = readFileSync(path.join(folder, file), 'utf8');
    expect(text, file).not.toMatch(/\b\w+(32|64)Array</);
  }
});

test('info() says what runs here', () => {
  const info = required.info();
  expect(info.version).toBe(manifest.version);
  expect(JSON.stringify(info)).toMatch(/cuda/i);
  expect(Object.values(info)).toContain(required.getNumThreads());
});
