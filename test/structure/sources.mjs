// Source files of the repository and what they name.

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));

/** Files under `folder` whose names end in one of the extensions, as root-relative paths. */
export function filesUnder(folder, extensions) {
  let entries;
  try {
    entries = readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true });
  } catch (error) {
    if (error.code === 'ENOENT') return [];
    throw error;
  }
  return entries
    .filter((entry) => entry.isFile() && extensions.some((end) => entry.name.endsWith(end)))
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
    .map((file) => file.replaceAll('\\', '/'))
    .filter((file) => !file.includes('node_modules/'))
    .toSorted();
}

export const read = (file) => readFileSync(path.join(root, file), 'utf8');

/** The text of a C++ file without comments and without the contents of strings. */
export function codeOf(text) {
  const pattern =
    /R"(\w*)\([^]*?\)\1"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'|\/\/[^\n]*|\/\*[^]*?\*\//g;
  return text.replace(pattern, (match) => {
    if (!match.startsWith('/')) return '""';
    return match.replace(/[^\n]/g, '');
  });
}

/** Names between quotes or angle brackets in the #include lines of a C++ file. */
export function includesOf(text) {
  return Array.from(
    text.matchAll(/^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)/gm),
    (match) => ({
      name: match[1] ?? match[2],
      system: match[1] === undefined,
    }),
  );
}

/** Module names in the import, export … from, require() and import() of a script. */
export function importsOf(text) {
  const statements = /^\s*(?:import|export)\s+(?:[\w*{}\s,$]+?\s+from\s*)?['"]([^'"\n]+)['"]/gm;
  const calls = /\b(?:require|import)\s*\(\s*['"]([^'"\n]+)['"]\s*\)/g;
  return [statements, calls].flatMap((pattern) => Array.from(text.matchAll(pattern), (m) => m[1]));
}
