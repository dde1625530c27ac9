// What the release script works out before it runs anything, and what the workflow may call.
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import manifest from '../../package.json' with { type: 'json' };
import release from '../../scripts/release.cjs';

const root = fileURLToPath(new URL('../..', import.meta.url));

test.each([
  ['0.2.0', '0.1.9', true],
  ['0.10.0', '0.9.0', true],
  ['1.0.0', '0.99.99', true],
  ['0.1.0', '0.1.0', false],
  ['0.1.0', '0.1.1', false],
  ['0.2.0', '1.1.0', false],
])('%s comes after %s: %s', (a, b, later) => {
  expect(release.isLater(a, b)).toBe(later);
});

test.each(['1.0', 'v1.0.0', '1.0.0-beta', ''])('"%s" is no version', (version) => {
  expect(() => release.isLater(version, '0.1.0')).toThrow('is no version');
});

test('a section comes in front of the older ones', () => {
  const first = release.changelogSection('0.1.0', '2026-01-01', ['Begin']);
  const second = release.changelogSection('0.2.0', '2026-02-01', ['Add one', 'Mend another']);
  const changelog = release.withSection(
    release.withSection('# Changelog\n\nText.\n', first),
    second,
  );
  expect(changelog).toBe(
    '# Changelog\n\nText.\n\n## 0.2.0 (2026-02-01)\n\n- Add one\n- Mend another\n\n' +
      '## 0.1.0 (2026-01-01)\n\n- Begin\n\n',
  );
});

test('checksums are those of sha256sum', () => {
  const folder = mkdtempSync(join(tmpdir(), 'checksums-'));
  writeFileSync(join(folder, 'b'), 'abc');
  writeFileSync(join(folder, 'a'), '');
  writeFileSync(join(folder, 'SHA256SUMS'), 'old');
  expect(release.checksums(folder)).toBe(
    'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\n' +
      'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  b\n',
  );
});

const folder = join(root, '.github', 'workflows');
test.each(readdirSync(folder))('%s pins its actions and calls scripts that exist', (file) => {
  const text = readFileSync(join(folder, file), 'utf8');
  const uses = [...text.matchAll(/uses: (\S+)/g)].map(([, action]) => action);
  expect(uses.length).toBeGreaterThan(0);
  for (const action of uses) expect(action).toMatch(/^[\w-]+\/[\w-]+@[0-9a-f]{40}$/);
  const scripts = [...text.matchAll(/npm run ([\w:]+)/g)].map(([, name]) => name);
  expect(scripts.length).toBeGreaterThan(0);
  for (const name of scripts) expect(Object.keys(manifest.scripts)).toContain(name);
});
