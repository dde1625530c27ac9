/** Files are written beside their place and then renamed: a reader sees the old one or all of it. */
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';

/** More in one call would exceed what the operating systems take. */
const WRITE_LIMIT = 1 << 26;

/** Writes all bytes at the end of an open file. */
export function writeAll(file: number, bytes: Uint8Array): void {
  let written = 0;
  while (written < bytes.length) {
    written += writeSync(file, bytes, written, Math.min(bytes.length - written, WRITE_LIMIT));
  }
}

/** Makes or replaces the file at `path` by what `write` puts into the open file that it is given. */
export function replaceFile(path: string, write: (file: number) => void): void {
  const draft = `${path}.${process.pid}.tmp`;
  const file = openSync(draft, 'w');
  try {
    try {
      write(file);
      fsyncSync(file); // a full disk shows here, not after the rename
    } finally {
      closeSync(file);
    }
    renameSync(draft, path);
  } catch (error) {
    rmSync(draft, { force: true });
    throw error;
  }
}
