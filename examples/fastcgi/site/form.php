<?php
// A form by GET or POST, whose fields come back.
declare(strict_types=1);
require __DIR__ . '/lib.inc.php';

$said = '';
$fields = $_SERVER['REQUEST_METHOD'] === 'POST' ? $_POST : $_GET;
if ($fields) {
    $text = static fn(string $key): string => is_string($fields[$key] ?? null) ? escaped($fields[$key]) : '';
    $said = '<p>' . escaped($_SERVER['REQUEST_METHOD']) . ' said:</p><output>' . $text('name') . ': ' . $text('message')
        . '</output>';
}
page('A form', <<<END
    $said
    <form method="post" accept-charset="utf-8"><label>Name <input name="name"></label>
    <label>Message <textarea name="message"></textarea></label>
    <button>Send by POST</button> <button formmethod="get">Send by GET</button></form>
    <p><a href="./">Back</a></p>
    END);
