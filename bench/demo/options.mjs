// The command line of the demo.

import { parseArgs } from 'node:util';

/** Something the user can put right: reported as one line, without a stack. */
export class UsageError extends Error {}

const REASONS = {
  EACCES: 'no permission',
  EEXIST: 'it is a file',
  EISDIR: 'it is a folder',
  ENOENT: 'no such file',
  ENOSPC: 'the disk is full',
  ENOTDIR: 'part of the path is a file',
  EROFS: 'the disk is read-only',
};

/** What kept a file from being read or written. */
export function fileError(action, { code }) {
  return new UsageError(`cannot ${action}: ${REASONS[code] ?? code}`);
}

const OPTIONS = [
  { name: 'size', value: 'pixels', initial: 128, low: 16, high: 512, whole: true },
  { name: 'noise', value: 'sigma', initial: 25, low: 1, high: 100 },
  { name: 'clusters', value: 'count', low: 1, high: 65_536, whole: true },
  { name: 'topk', value: 'keys', initial: 128, low: 1, high: 65_536, whole: true },
  { name: 'patch', value: 'pixels', initial: 7, low: 3, high: 15, whole: true },
  { name: 'strength', value: 'h', initial: 1.05, low: 0.1, high: 10 },
  { name: 'seed', value: 'number', initial: 0, low: 0, high: Number.MAX_SAFE_INTEGER, whole: true },
];

const HELP = `Denoises a picture by attention: non-local means, exact and clustered.

Usage: npm run demo -- [picture] [options]

  picture             a PNG, JPEG, WebP, … (default: a test picture that the demo draws)
  --size pixels       longest side the picture is resized to, 16 to 512 (default 128)
  --noise sigma       deviation of the noise that is added, 1 to 100 of 255 (default 25)
  --clusters count    groups of patches (default 2 × √pixels: 256 for 128×128)
  --topk keys         keys per cluster attended to exactly, improved attention (default 128)
  --patch pixels      width of a patch, odd, 3 to 15 (default 7)
  --strength h        how unlike patches may be, in multiples of the noise (default 1.05)
  --seed number       of the noise and the clustering (default 0)
  --output folder     where demo.png and demo.html go (default bench/demo/output)
  --help              this text
`;

const DEFAULT_OUTPUT = new URL('output', import.meta.url);

function readNumber({ name, initial, low, high, whole }, text) {
  if (text === undefined) return initial;
  const value = text.trim() === '' ? NaN : Number(text);
  const fits = value >= low && value <= high && (!whole || Number.isInteger(value));
  if (fits) return value;
  const kind = whole ? 'a whole number' : 'a number';
  const range = high === Number.MAX_SAFE_INTEGER ? `of ${low} or more` : `from ${low} to ${high}`;
  throw new UsageError(`--${name} must be ${kind} ${range}, not "${text}"`);
}

/**
 * @param {string[]} argv
 * @returns the options by name and `picture`, or `{ help }`: the text to print instead
 */
export function parseOptions(argv) {
  const strings = [...OPTIONS.map(({ name }) => name), 'output'];
  const known = Object.fromEntries(strings.map((name) => [name, { type: 'string' }]));
  let parsed;
  try {
    parsed = parseArgs({
      args: argv,
      options: { ...known, help: { type: 'boolean' } },
      allowPositionals: true,
    });
  } catch (error) {
    throw new UsageError(`${error.message.split(/[.\n]/)[0]} (--help lists the options)`);
  }
  const { values, positionals } = parsed;
  if (values.help) return { help: HELP };
  if (positionals.length > 1) {
    throw new UsageError(`one picture at a time, not ${positionals.length}`);
  }
  const numbers = OPTIONS.map((option) => [option.name, readNumber(option, values[option.name])]);
  const settings = Object.fromEntries(numbers);
  if (settings.patch % 2 === 0) throw new UsageError(`--patch must be odd, not ${settings.patch}`);
  if (values.output === '') throw new UsageError('--output must name a folder');
  return { ...settings, picture: positionals[0], output: values.output ?? DEFAULT_OUTPUT };
}
