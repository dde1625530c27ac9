// The packed package where no prebuilt addon fits.
import { describe, expect, inject, test } from 'vitest';
import {
  builtHere,
  execute,
  hasBuild,
  install,
  installed,
  pathWith,
  project,
  runExamples,
} from './project.mjs';

describe('the source builds', () => {
  const compilers = ['cmake', 'c++', 'as', 'ld', 'ar', 'ranlib', 'make', 'nproc', 'uname'];

  test('with a C++ compiler, CMake and make alone, when no prebuilt addon fits', () => {
    const env = { PATH: pathWith(...compilers), CLUSTER_ATTENTION_CUDA: '0' };
    const folder = installed(project(), { env }, inject('sourceTarball'));
    expect(builtHere(folder)).toBe(true);
    expect(execute(folder, 'build.cjs', hasBuild, { env }).output).toBe('local\n');
    runExamples(folder, { env });
  }, 1_200_000);

  test('not without a compiler: the installation says what is missing', () => {
    const env = { PATH: pathWith() };
    const { status, output } = install(project(), inject('sourceTarball'), { env });
    expect(status).not.toBe(0);
    expect(output).toMatch(/CMake 3\.20 or newer was not found/);
    expect(output).toMatch(/apt-get install cmake g\+\+/);
    expect(output).toMatch(/install what is missing, then repeat the installation/);
    expect(output).not.toMatch(/npm rebuild/); // npm has taken the package away
  });
});
