/** Where an exchange says what people should know: `console`, or whatever has these methods. */
export interface Logger {
  debug(message: string, ...details: unknown[]): void;
  info(message: string, ...details: unknown[]): void;
  warn(message: string, ...details: unknown[]): void;
  error(message: string, ...details: unknown[]): void;
}

const nothing = (): void => undefined;

/** What is used unless something else is given: warnings and errors, by the `console`. */
export const consoleLog: Logger = {
  debug: nothing,
  info: nothing,
  warn: (message, ...details) => console.warn(`exchange: ${message}`, ...details),
  error: (message, ...details) => console.error(`exchange: ${message}`, ...details),
};
