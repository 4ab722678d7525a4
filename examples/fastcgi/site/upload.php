<?php
// Takes a file, and says its name, size and SHA-256.
declare(strict_types=1);
require __DIR__ . '/lib.inc.php';

$shown = '';
$file = $_FILES['file'] ?? null;
if (is_array($file) && is_string($file['tmp_name'])) {
    $shown = $file['error'] === UPLOAD_ERR_OK
        ? '<pre>name: ' . escaped($file['name']) . "\nsize: {$file['size']}\nsha256: "
            . hash_file('sha256', $file['tmp_name']) . '</pre>'
        : "<p>That didn't work (PHP's error {$file['error']}).</p>";
}
page('An upload', <<<END
    $shown
    <form method="post" enctype="multipart/form-data"><input type="file" name="file" required> <button>Upload</button></form>
    <p><a href="./">Back</a></p>
    END);
