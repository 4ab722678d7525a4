<?php
// What all pages have in common. Asked for by itself it says nothing.
declare(strict_types=1);

function escaped(string $text): string
{
    return htmlspecialchars($text, ENT_QUOTES | ENT_SUBSTITUTE, 'UTF-8');
}

function page(string $title, string $body): void
{
    $title = escaped($title);
    $base = escaped(rtrim(dirname($_SERVER['SCRIPT_NAME']), '/'));
    echo <<<END
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
        <title>$title</title><link rel="stylesheet" href="$base/style.css"></head>
        <body><h1>$title</h1>
        $body
        </body></html>

        END;
}
