/** Files are written beside their place and then renamed: a reader sees the old one or all of it. */
import { randomUUID } from 'node:crypto';
import {
  closeSync,
  constants,
  fsyncSync,
  lstatSync,
  openSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';

/** More in one call would exceed what the operating systems take. */
const WRITE_LIMIT = 1 << 26;

/** Writes all bytes at the end of an open file. */
export function writeAll(file: number, bytes: Uint8Array): void {
  let written = 0;
  while (written < bytes.length) {
    written += writeSync(file, bytes, written, Math.min(bytes.length - written, WRITE_LIMIT));
  }
}

/**
 * Makes or replaces the file at `path` by what `write` puts into the open file that it is given. A
 * link stays, the file that it names is replaced; a device or a pipe is written to as it is.
 */
export function replaceFile(path: string, write: (file: number) => void): void {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found !== undefined && !found.isFile()) {
    writeAndClose(openSync(path, constants.O_WRONLY), write);
    return;
  }
  const target = followLinks(path);
  const draft = `${target}.${randomUUID()}.tmp`; // another thread may write the same path
  const file = openSync(draft, 'wx');
  try {
    writeAndClose(file, () => {
      write(file);
      fsyncSync(file); // a full disk shows here, not after the rename
    });
    renameSync(draft, target);
  } catch (error) {
    rmSync(draft, { force: true });
    throw error;
  }
}

function writeAndClose(file: number, write: (file: number) => void): void {
  try {
    write(file);
  } finally {
    closeSync(file);
  }
}

/** What a path names in the end, be it there or not: realpath() fails where it is not. */
function followLinks(path: string): string {
  const isLink = lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink();
  return isLink ? followLinks(resolve(realpathSync(dirname(path)), readlinkSync(path))) : path;
}
