// Where an exchange says what people should know.

package exchange

import (
	"context"
	"log/slog"
)

// logger is that of [WithLogger], or else whatever slog.Default() is by now, for warnings and errors.
func (x *Exchange) logger() *slog.Logger {
	if x.log != nil {
		return x.log
	}
	return slog.New(warnings{slog.Default().Handler().WithAttrs([]slog.Attr{slog.String("exchange", x.id)})})
}

// warnings is a handler that hears of nothing less.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}
