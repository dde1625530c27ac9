'use strict';
// Writes docs/api.md and docs/api-safetensors.md, the reference of the public interface, from the types and their docstrings:
//   npm run docs                  node scripts/api-docs.cjs --check says whether it is up to date
// TypeDoc knows TypeScript up to 6.0 and this project compiles with 7: both get a folder of their own.

const { execFileSync } = require('node:child_process');
const { existsSync, mkdirSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');

const root = join(__dirname, '..');
const TOOLS = {
  typedoc: '0.28.20',
  'typedoc-plugin-markdown': '4.14.1',
  typescript: '6.0.3',
};
const OPTIONS = {
  readme: 'none',
  excludeInternal: true,
  excludePrivate: true,
  hideGenerator: true,
  disableSources: true,
  disableGit: true,
  outputFileStrategy: 'modules',
  hidePageHeader: true,
  hideBreadcrumbs: true,
  useCodeBlocks: true,
  parametersFormat: 'table',
  interfacePropertiesFormat: 'table',
};

/** The folder of the tools, installed once. */
function toolFolder() {
  const folder = join(root, 'build', 'docs-tools');
  const manifest = JSON.stringify({ private: true, dependencies: TOOLS }, null, 2);
  const stamp = join(folder, 'installed.json');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === manifest) return folder;
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'package.json'), manifest);
  execFileSync('npm', ['install', '--no-audit', '--no-fund'], { cwd: folder, stdio: 'inherit' });
  writeFileSync(stamp, manifest);
  return folder;
}

const tools = toolFolder();
const out = join(root, 'build', 'api-docs');
const settings = join(tools, 'typedoc.json');
writeFileSync(
  settings,
  JSON.stringify({
    ...OPTIONS,
    name: 'cluster-attention',
    plugin: [require.resolve('typedoc-plugin-markdown', { paths: [tools] })],
    entryPoints: [join(root, 'lib', 'index.ts'), join(root, 'lib', 'safetensors.ts')],
    tsconfig: join(root, 'tsconfig.json'),
    out,
  }),
);
const typedoc = join(tools, 'node_modules', 'typedoc', 'bin', 'typedoc');
execFileSync(process.execPath, [typedoc, '--options', settings], { cwd: root, stdio: 'inherit' });

/** What a page of TypeDoc's is called here; titles and links follow. */
function page(file, title) {
  return readFileSync(join(out, file), 'utf8')
    .replace(
      /^# .*\n/,
      `# ${title}\n\n<!-- Written by npm run docs from the docstrings in lib/. -->\n`,
    )
    .replaceAll('](index.md', '](api.md')
    .replaceAll('](safetensors.md', '](api-safetensors.md');
}

const pages = {
  'docs/api.md': page('index.md', 'Reference: cluster-attention'),
  'docs/api-safetensors.md': page('safetensors.md', 'Reference: cluster-attention/safetensors'),
};
const check = process.argv.includes('--check');
for (const [file, text] of Object.entries(pages)) {
  const path = join(root, file);
  if (!check) {
    writeFileSync(path, text);
  } else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
    console.error(`${file} is not what the docstrings say: npm run docs`);
    process.exitCode = 1;
  }
}
