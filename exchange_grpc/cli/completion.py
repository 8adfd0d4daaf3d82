"""`exchange completion`: what a shell needs to complete commands and options."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options.

    \b
    exchange completion bash >> ~/.bashrc
    exchange completion zsh >> ~/.zshrc
    exchange completion fish > ~/.config/fish/completions/exchange.fish

    The next shell has it. zsh needs `autoload -Uz compinit && compinit` before it in that file.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click brings all three
    click.echo(kind(context.find_root().command, {}, "exchange", "_EXCHANGE_COMPLETE").source())
