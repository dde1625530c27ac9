/** The process that draws the inputs of a group: like those that measure, it can be ended at once. */
import { writeSafetensors } from '../safetensors';
import { type Distribution, drawTensors } from './distributions';
import type { InputFile } from './inputs';
import { answerRequests } from './protocol';
import type { Problem } from './record';

export interface DrawRequest {
  readonly distribution: Distribution;
  readonly problem: Problem;
  readonly seed: number;
  readonly input: InputFile;
}

function draw({ distribution, problem, seed, input }: DrawRequest): void {
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = problem;
  const { query, key, value } = drawTensors(distribution, problem, seed);
  const [queryName, keyName, valueName] = input.names;
  writeSafetensors(input.path, {
    [queryName]: { shape: [batch, heads, queryLength, headDim], data: query },
    [keyName]: { shape: [batch, heads, keyLength, headDim], data: key },
    [valueName]: { shape: [batch, heads, keyLength, valueDim], data: value },
  });
}

void answerRequests((request) => {
  draw(request as DrawRequest);
  return { status: 'drawn' };
});
