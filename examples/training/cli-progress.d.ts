/** The part of cli-progress that the training program uses. */
declare module 'cli-progress' {
  export class SingleBar {
    constructor(options: { format: string; hideCursor?: boolean; noTTYOutput?: boolean });
    start(total: number, start: number, payload: object): void;
    update(value: number, payload: object): void;
    stop(): void;
  }
}
