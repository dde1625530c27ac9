'use strict';
// Bundles what the benchmark's report shows in a browser: bench/report/ and Observable Plot, into
// dist/bench/page.js and page.css. So the installed package writes reports that work offline,
// without depending on a charting library.

const { existsSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { buildSync } = require('esbuild');

const root = join(__dirname, '..');
const target = join(root, 'dist', 'bench');

if (!existsSync(join(root, 'node_modules', '@observablehq', 'plot'))) {
  console.error('@observablehq/plot is not installed; first: npm install --ignore-scripts');
  process.exit(1);
}

const { metafile, outputFiles } = buildSync({
  absWorkingDir: root,
  entryPoints: ['bench/report/main.mjs', 'bench/report/style.css'],
  outdir: target,
  bundle: true,
  minify: true,
  charset: 'utf8',
  format: 'iife',
  target: ['es2022', 'chrome109', 'firefox115', 'safari16.4'],
  legalComments: 'none', // the licences are prepended whole
  metafile: true,
  write: false,
});

/** The licences of the packages that went in, each text once, above the names it covers. */
function licences() {
  const packages = new Set(
    Object.keys(metafile.inputs)
      .map((file) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1])
      .filter(Boolean),
  );
  const namesByText = new Map();
  for (const name of [...packages].toSorted()) {
    const text = readFileSync(join(root, 'node_modules', name, 'LICENSE'), 'utf8').trim();
    namesByText.set(text, [...(namesByText.get(text) ?? []), name]);
  }
  return Array.from(namesByText, ([text, names]) => `${names.join(', ')}\n\n${text}`);
}

for (const { path, text } of outputFiles) {
  const script = path.endsWith('.js');
  const notice = script ? `/*\n${licences().join('\n\n----\n\n')}\n*/\n` : '';
  // A script within a page ends at the first "</script", wherever it stands.
  const body = script ? text.replaceAll('</script', '<\\/script') : text;
  const name = script ? 'page.js' : 'page.css';
  writeFileSync(join(target, name), notice + body);
}
